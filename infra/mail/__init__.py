"""Mail: messages, and mailers that write them to a folder or send them by SMTP.

Imports `infra.clock` and `infra.files` alone.
"""

from infra.mail.errors import MailError, MailRejected, MailUnavailable
from infra.mail.mailer import FolderMailer, Mailer
from infra.mail.message import Mail
from infra.mail.smtp import SmtpMailer

__all__ = ["FolderMailer", "Mail", "MailError", "MailRejected", "MailUnavailable", "Mailer", "SmtpMailer"]
