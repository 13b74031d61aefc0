"""What the project promises, as code that can fail."""
