"""The contract's tests, one module per topic."""
