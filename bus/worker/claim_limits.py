"""The policy of claims: how many deliveries a worker claims at once, and when it claims a delivery alone."""

from infra.mq import ClaimLimits

CLAIM_LIMITS = ClaimLimits(suspect_after=2, mailbox_batch=10, mailbox_run=100, fetch_bytes=8 * 1024 * 1024)
"""The limits with which every worker registers. A suspect is claimed alone, so that the worker can isolate it."""

RUN_TIME = 0.1
"""Seconds after which a worker releases the rest of a claim, once it has handled a multiple of `mailbox_batch`.

So a key with slow handlers occupies a slot for `mailbox_batch` deliveries, also in a claim of `mailbox_run`.
"""
