"""What scores the candidates for the next token."""
