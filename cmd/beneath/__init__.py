"""The executable: commands, startables, and the HTTP entry points."""
