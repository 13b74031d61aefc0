"""Tests of the documentation: its examples, references, tables and wording."""
