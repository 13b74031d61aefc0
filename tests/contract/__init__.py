"""The tests of the message queue contract, which every driver runs: one or more for each of its sentences."""
