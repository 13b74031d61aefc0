"""The scripts that run on the server."""
