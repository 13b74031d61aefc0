"""Tests of commands, and of the application in this process, with the example."""
