"""The soak: workers and publishers under load with all faults at once, on one stack; see `python -m tests.soak --help`.

It checks the invariants of `tests.torture.checker`. It is not collected by pytest.
"""
