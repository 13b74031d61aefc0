"""Tests of the composition root: settings, containers and their completeness."""
