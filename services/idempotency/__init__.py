"""The idempotency service: stores responses for clients that repeat a request."""
