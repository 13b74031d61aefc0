"""End-to-end tests with the example."""
