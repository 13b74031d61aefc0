"""The journal of every organization."""
