"""What can be wrong with a call to the secret service."""


class SecretError(Exception):
    """Base of this service's errors."""


class InvalidSecret(SecretError):
    """The secret is unknown, malformed or revoked; which of them is not told."""


class SecretNotFound(SecretError):
    """The user has no such secret."""


class ScopeNotGranted(SecretError):
    """A secret was asked to do, or to hand on, more than its scopes allow."""
