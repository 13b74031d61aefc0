"""The HTTP interface: the `/v1` API, health and metrics. Routes translate; the services decide.

`core/` is the part of the API that knows no domain. Each domain has a folder with its routes, schemas and problems, and
`domains.py` lists them.
"""

from beneath.http.app import HttpOptions, create_app
from beneath.http.core.health import Probe, Scrape, create_health_app

__all__ = ["HttpOptions", "Probe", "Scrape", "create_app", "create_health_app"]
