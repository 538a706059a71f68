"""A reward model over HTTP: requests, batches of like length, answers. It knows no model itself."""
