"""The startables: parts of the application that `beneath start` starts by name, one module each."""

from beneath.startables.selection import ALL, STARTABLES, built, select
from beneath.startables.types import BuildContext, Launch, OpenedApplication, Startable

__all__ = ["ALL", "STARTABLES", "BuildContext", "Launch", "OpenedApplication", "Startable", "built", "select"]
