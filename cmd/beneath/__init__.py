"""The executable: commands, startables and HTTP. It may import all other packages; they never import it."""
