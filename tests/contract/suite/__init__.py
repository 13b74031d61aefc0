"""The contract's tests by topic."""
