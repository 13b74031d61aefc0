"""Tests of the pages about the example."""
