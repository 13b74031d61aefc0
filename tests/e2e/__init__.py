"""End-to-end tests: the application as separate processes."""
