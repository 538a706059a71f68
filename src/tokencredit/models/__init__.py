"""What is asked of any Hugging Face model, whatever it is used for."""
