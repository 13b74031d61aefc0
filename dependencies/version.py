"""The version of the installed application."""

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "beneath-backend"


def application_version() -> str:
    """Return the installed version; `unknown` for a source tree that is not installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"
