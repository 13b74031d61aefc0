"""`python -m tests.mutants [NAME ...]`: tests all or the named seeded bugs; fails if one is not detected."""

import sys
import tempfile
from pathlib import Path

from tests.mutants.seeded import MUTANTS
from tests.mutants.trying import caught


def main(names: list[str]) -> int:
    """Return 1 if a seeded bug was not detected."""
    chosen = [it for it in MUTANTS if not names or it.name in names]
    missed = 0
    with tempfile.TemporaryDirectory(prefix="beneath-mutants-") as folder:
        for mutant in chosen:
            found = caught(mutant, Path(folder))
            missed += not found
            print(f"{'caught' if found else 'MISSED'}  {mutant.kind:2}  {mutant.name}", flush=True)  # noqa: T201 - its output
    return int(missed > 0 or not chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
