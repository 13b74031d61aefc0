"""The list of domains that the API consists of. To add a domain, add its `DOMAIN`."""

from beneath.http import audit, idempotency, organizations, projects, secrets, users

DOMAINS = (
    users.DOMAIN,
    secrets.DOMAIN,
    organizations.DOMAIN,
    projects.DOMAIN,
    audit.DOMAIN,
    idempotency.DOMAIN,
)
"""In the order of the API's description."""
