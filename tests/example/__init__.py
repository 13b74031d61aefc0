"""Tests of the framework together with the shipped example; they are deleted with it: see docs/upgrading.md."""
