"""Errors that the secret service raises."""


class SecretError(Exception):
    """Base of this service's errors."""


class InvalidSecret(SecretError):
    """The secret is unknown, malformed or revoked; the error does not reveal which."""


class SecretNotFound(SecretError):
    """The user has no such secret."""


class ScopeNotGranted(SecretError):
    """A secret lacks a scope for the request, or for a secret that it should issue."""
