"""Credit of given responses: shown, written, and compared with people."""
