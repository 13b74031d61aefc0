"""Dead letters of a failing listener, operated from the command line."""

import pytest

from tests.e2e.processes import until
from tests.torture.events import Job
from tests.torture.fleet import Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def test_dead_letter_retried_from_the_command_line_reaches_only_its_listener(fleet: Fleet) -> None:
    worker = fleet.started("failing", "done")
    fleet.publish([Job(key="a", n=1)])
    until(lambda: fleet.stats()["failing"].dead, "it is a dead letter")
    assert [each.attempt for each in fleet.runs("failing")] == [1, 2, 3, 4]

    [row] = fleet.command("bus", "dead", "list", "--json")
    assert (row["listener"], row["failures"], row["error"]) == ("failing", 4, "Unlucky: the gate is closed")
    fleet.gate.touch()
    assert fleet.command("bus", "dead", "retry", row["id"]) == "retried 1\n"

    until(lambda: fleet.runs("failing", "end"), "it is handled after all")
    assert [each.attempt for each in fleet.runs("failing")] == [1, 2, 3, 4, 1]
    assert len(fleet.runs("done")) == 1
    fleet.stop(worker)
    assert fleet.dead_letters() == []
