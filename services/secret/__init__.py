"""The secret service: API secrets, and authentication by them."""
