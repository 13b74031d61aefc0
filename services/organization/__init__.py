"""The organization service: organizations, their members, roles and invites."""
