"""The routes of the `/v1` API, one module per resource: they validate, call a service, and render its result."""
