"""Errors that the project service raises."""


class ProjectError(Exception):
    """Base of this service's errors."""


class ProjectNotFound(ProjectError):
    """The project does not exist or is not visible to the caller; the error does not reveal which."""


class ProjectChanged(ProjectError):
    """The project is no longer at the version that the caller expects."""
