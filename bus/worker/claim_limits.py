"""The limits of a worker's claims."""

from infra.mq import ClaimLimits

CLAIM_LIMITS = ClaimLimits(suspect_after=2, mailbox_batch=10, fetch_bytes=8 * 1024 * 1024)
"""The limits with which every worker registers. A suspect is claimed alone, so that the worker can isolate it."""
