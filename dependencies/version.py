"""Which version of the application this is."""

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "beneath-backend"


def application_version() -> str:
    """Return the installed version; `unknown` for a source tree that nobody installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"
