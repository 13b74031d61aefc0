"""The message queue drivers, one package each. Only the composition root and `bus.testing` import them."""
