"""One script and one list of pinned requirements for each peer.

Each script runs in an environment of its own, which has that peer alone: `tests.bench.environments` makes it. A script
imports the standard library, its peer and `tests.bench.protocol`, nothing else of this project.
"""
