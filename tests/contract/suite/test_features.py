"""The features that drivers declare, and the tests that drivers without them skip."""

import importlib
import inspect
import pkgutil
from dataclasses import replace

import pytest

import tests.contract.suite
from tests.contract.harness import DRIVERS, Harness

TRANSACTIONAL = {
    "test_broadcast_of_a_transaction_is_received_if_and_only_if_it_commits",
    "test_a_cancellation_counts_only_if_its_transaction_commits",
    "test_refused_publish_leaves_its_transaction_usable",
    "test_transaction_can_cancel_its_own_message",
    "test_an_id_counts_as_accepted_only_if_its_transaction_commits",
    "test_transaction_can_reschedule_under_the_same_id",
    "test_messages_of_a_rolled_back_transaction_never_exist",
    "test_messages_of_a_committed_transaction_exist",
}
DURABLE = {
    "test_a_pause_survives_a_restart",
    "test_claims_of_an_ended_process_remain_claims_of_a_dead_worker",
    "test_parked_delivery_stays_parked_after_a_restart",
    "test_published_message_survives_the_end_of_the_process",
}
MULTI_PROCESS = {
    "test_consumer_in_another_event_loop_or_forked_child_is_refused_at_once",
    "test_kept_claim_can_be_recovered_once_its_queue_is_closed",
    "test_claims_of_a_closed_queue_are_recovered_by_another_queue",
}
SKIPPED = {
    "memory": TRANSACTIONAL | DURABLE | MULTI_PROCESS,
    "sqlite": set[str](),
    "postgres": set[str](),
    "redis7": TRANSACTIONAL,
    "redis8": TRANSACTIONAL,
    "valkey": TRANSACTIONAL,
}


async def test_driver_declares_its_features(harness: Harness, driver: str) -> None:
    features = (await harness.queue()).features
    assert features == replace(DRIVERS[driver].features, max_body=features.max_body)
    assert 64 * 1024 * 1024 <= features.max_body <= 1024 * 1024 * 1024


@pytest.mark.parametrize("name", DRIVERS)
def test_driver_skips_exactly_the_listed_tests(name: str) -> None:
    features = DRIVERS[name].features
    skipped = {test for test, needs in _requirements().items() if not all(getattr(features, it) for it in needs)}
    assert skipped == SKIPPED[name]


def _requirements() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for module in pkgutil.iter_modules(tests.contract.suite.__path__):
        loaded = importlib.import_module(f"{tests.contract.suite.__name__}.{module.name}")
        for name, test in inspect.getmembers(loaded, inspect.isfunction):
            marks = [it for it in getattr(test, "pytestmark", []) if it.name == "requires"]
            if marks:
                found[name] = [feature for it in marks for feature in it.args]
    return found
