"""`train-preferences`: offline losses of preferences with weights of tokens."""
