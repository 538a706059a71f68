"""Several rewards, brought to one scale and combined before credit is given."""
