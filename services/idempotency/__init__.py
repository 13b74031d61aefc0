"""Answers kept for clients that ask again."""
