"""The tests of `tests.infra.db` that apply to every dialect, run on PostgreSQL."""

from tests.infra.db.test_participants import *  # noqa: F403  # every test in it
from tests.infra.db.test_savepoint import *  # noqa: F403
from tests.infra.db.test_transaction import (
    test_a_marked_transaction_does_not_commit,
    test_a_thread_cannot_use_the_transaction,
    test_an_unused_transaction_does_no_io,
    test_another_task_cannot_use_the_transaction,
    test_exception_of_the_outermost_block_takes_precedence_over_the_mark,
    test_exception_that_leaves_a_joined_block_fails_the_commit,
    test_flush_of_the_orm_begins_the_transaction,
    test_hidden_transaction_is_invisible_to_threads_and_tasks,
    test_nested_block_joins_the_surrounding_transaction,
    test_objects_stay_readable_after_commit,
    test_on_begin_does_not_run_in_a_transaction_that_is_never_used,
    test_on_begin_runs_right_after_begin,
    test_on_begin_that_fails_makes_the_transaction_rollback_only,
    test_pending_orm_changes_are_flushed_before_commit,
    test_read_inside_a_transaction_is_its_session,
    test_task_that_outlives_the_transaction_may_open_another,
    test_the_first_mark_is_the_cause,
    test_the_session_cannot_end_the_transaction,
    test_transaction_commits_at_the_end_of_the_block,
    test_transaction_is_unusable_after_its_end,
)

__all__ = [
    "test_a_marked_transaction_does_not_commit",
    "test_a_thread_cannot_use_the_transaction",
    "test_an_unused_transaction_does_no_io",
    "test_another_task_cannot_use_the_transaction",
    "test_exception_of_the_outermost_block_takes_precedence_over_the_mark",
    "test_exception_that_leaves_a_joined_block_fails_the_commit",
    "test_flush_of_the_orm_begins_the_transaction",
    "test_hidden_transaction_is_invisible_to_threads_and_tasks",
    "test_nested_block_joins_the_surrounding_transaction",
    "test_objects_stay_readable_after_commit",
    "test_on_begin_does_not_run_in_a_transaction_that_is_never_used",
    "test_on_begin_runs_right_after_begin",
    "test_on_begin_that_fails_makes_the_transaction_rollback_only",
    "test_pending_orm_changes_are_flushed_before_commit",
    "test_read_inside_a_transaction_is_its_session",
    "test_task_that_outlives_the_transaction_may_open_another",
    "test_the_first_mark_is_the_cause",
    "test_the_session_cannot_end_the_transaction",
    "test_transaction_commits_at_the_end_of_the_block",
    "test_transaction_is_unusable_after_its_end",
]
