"""Organizations, their members and invites, and who may do what in them."""
