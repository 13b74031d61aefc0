"""The user service: sign-up and profiles."""
