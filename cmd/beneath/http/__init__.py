"""The HTTP interface: the `/v1` API, health and metrics. Routes translate; the services decide."""

from beneath.http.app import HttpOptions, create_app
from beneath.http.health import Probe, Scrape, create_health_app
from beneath.http.services import Services

__all__ = ["HttpOptions", "Probe", "Scrape", "Services", "create_app", "create_health_app"]
