"""The folder of a run: what is kept, what is left out, and how it stops and goes on."""
