"""The message queue contract: every promised sentence has a test, and every driver runs them all."""
