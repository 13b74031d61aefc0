"""Emails to people about what happened."""
