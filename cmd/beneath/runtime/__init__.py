"""The runtime of a process: lifecycle and signals, child processes, `--reload`, and the HTTP server."""
