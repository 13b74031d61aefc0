from collections.abc import Iterator

from tests.bench.contenders import OURS
from tests.bench.drivers import BENCHES
from tests.bench.gate import FLOORS, MOST_ROUNDS, Pair, best_share


def test_first_sufficient_round_ends_the_comparison() -> None:
    taken: list[Pair] = []

    def rounds() -> Iterator[Pair]:
        for pair in ((10.0, 1.0), (4.0, 2.0), (1.0, 1.0)):
            taken.append(pair)
            yield pair

    assert best_share(rounds(), 0.25) == 0.25
    assert taken == [(10.0, 1.0), (4.0, 2.0)]


def test_a_slow_driver_fails_after_all_rounds() -> None:
    assert best_share(iter([(10.0, 1.0)] * MOST_ROUNDS), 0.25) == 0.1


def test_a_slow_round_of_the_bare_loop_helps_no_driver() -> None:
    assert best_share(iter([(10.0, 1.0), (9.0, 8.0)]), 0.25) < 0.25


def test_every_driver_with_a_bare_loop_has_floors_with_wide_margins() -> None:
    assert {floor.driver for floor in FLOORS} == {each.server for each in OURS}
    assert all(0.1 <= floor.share <= 0.4 for floor in FLOORS)
    assert {floor.driver for floor in FLOORS} - {"redis"} <= set(BENCHES)
