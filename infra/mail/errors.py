"""The errors that a mailer raises."""


class MailError(Exception):
    """Base of every error that a mailer raises."""


class MailRejected(MailError):
    """The mail was rejected permanently; sending it again does not help."""


class MailUnavailable(MailError):
    """The mail could not be sent now; a later attempt may succeed."""
