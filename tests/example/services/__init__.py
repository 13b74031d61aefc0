"""Tests of the services of the example."""
