"""Tests of the example on PostgreSQL, where transactions run in parallel."""
