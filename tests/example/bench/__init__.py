"""The benchmark of the API, with routes of the example."""
