"""Load under every fault at once, on one stack, for as long as you like; `python -m tests.soak --help`.

Nothing here is a pytest test. It checks the promises that `tests.torture.checker` reads off a journal, while all faults
happen together.
"""
