"""Tests of the commands, and of the start and shutdown of processes."""
