"""The HTTP interface: the `/v1` API, health and metrics. Routes translate; the services decide.

`core/` is the part of the API that knows no domain. Each domain has a folder with its routes, schemas and problems, and
`domains.py` lists them. `app.py` makes the application of the control server, `core/health.py` that of a worker. Import
them from these modules: a worker does not load the API, nor FastAPI.
"""
