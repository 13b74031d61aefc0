"""What can be wrong with a call to the project service."""


class ProjectError(Exception):
    """Base of this service's errors."""


class ProjectNotFound(ProjectError):
    """There is no such project where the caller may look; which of both is not told."""


class ProjectChanged(ProjectError):
    """The project is no longer at the version that the caller had seen."""
