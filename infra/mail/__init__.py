"""Sending email: what a mail is, and the places it can go."""

from infra.mail.errors import MailError, MailRejected, MailUnavailable
from infra.mail.mailer import FolderMailer, Mailer
from infra.mail.message import Message
from infra.mail.smtp import SmtpMailer

__all__ = ["FolderMailer", "MailError", "MailRejected", "MailUnavailable", "Mailer", "Message", "SmtpMailer"]
