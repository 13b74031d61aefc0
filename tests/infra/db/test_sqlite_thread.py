"""Answers of the threads that run SQLite's statements."""

import asyncio

import pytest

from infra.db.sqlite_thread import hand_over


async def test_job_that_raises_stop_iteration_fails_its_caller() -> None:
    answer = asyncio.get_running_loop().create_future()
    hand_over(answer, None, StopIteration())
    with pytest.raises(RuntimeError, match="a job raised StopIteration") as caught:
        await asyncio.wait_for(answer, 5)
    assert isinstance(caught.value.__cause__, StopIteration)
