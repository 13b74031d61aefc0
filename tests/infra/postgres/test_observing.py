"""The observer of leases: workers are considered dead by its own monotonic clock."""

from infra.mq.drivers.sql.postgres.observing import ABANDONED, LeaseObserver

LEASE = 10.0
VICTIM, OTHER = 1, 2


class Watch:
    """An observer that reads the leases every two seconds."""

    def __init__(self) -> None:
        self.observer = LeaseObserver(LEASE)
        self.now = 100.0
        self.leases = {VICTIM: 1000.0, OTHER: 1000.0}
        self.observe()

    def observe(self) -> list[int]:
        self.observer.observe(self.leases.items(), self.now, self.now)
        return [number for number, _ in self.observer.dead(self.now)]

    def pass_time(self, seconds: float, *renewing: int) -> list[int]:
        """Observe for some seconds, while the given workers renew; return the workers considered dead at the end."""
        dead: list[int] = []
        end = self.now + seconds
        while self.now < end:
            self.now += min(2.0, end - self.now)
            for it in renewing:
                self.leases[it] += 2.0
            dead = self.observe()
        return dead


def test_unchanged_lease_expires_after_its_duration_and_a_fifth() -> None:
    watch = Watch()
    assert watch.pass_time(11.9, OTHER) == []
    assert watch.pass_time(0.1, OTHER) == [VICTIM]


def test_clock_step_expires_no_lease() -> None:
    watch = Watch()
    for step in (3600.0, -7200.0, 3600.0):
        watch.leases = {number: until + step for number, until in watch.leases.items()}
        assert watch.pass_time(60.0, VICTIM, OTHER) == []


def test_lease_far_in_the_future_expires_without_renewals() -> None:
    watch = Watch()
    watch.leases[VICTIM] = 1e9
    watch.observe()
    assert watch.pass_time(12.0, OTHER) == [VICTIM]


def test_pause_of_the_observer_gives_workers_a_whole_lease_to_renew() -> None:
    watch = Watch()
    assert watch.pass_time(11.0, OTHER) == []
    watch.now += LEASE
    assert watch.observe() == []
    assert watch.pass_time(11.9, OTHER) == []
    assert watch.pass_time(0.1, OTHER) == [VICTIM]


def test_newly_started_process_considers_no_worker_dead() -> None:
    watch = Watch()
    watch.leases = {VICTIM: 1.0}
    assert watch.observe() == []
    assert watch.pass_time(11.9) == []


def test_abandoned_lease_expires_at_once() -> None:
    watch = Watch()
    watch.leases[VICTIM] = ABANDONED
    assert watch.observe() == [VICTIM]


def test_worker_taken_over_is_no_longer_observed() -> None:
    watch = Watch()
    watch.pass_time(20.0, OTHER)
    del watch.leases[VICTIM]
    assert watch.observe() == []
