"""Why a mail was not sent."""


class MailError(Exception):
    """Base of what a mailer raises."""


class MailRejected(MailError):
    """This mail will never be accepted; sending it again is pointless."""


class MailUnavailable(MailError):
    """It did not work now; it may later."""
