"""Users: who they are."""
