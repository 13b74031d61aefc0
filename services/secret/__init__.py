"""API secrets, and authentication by them."""
