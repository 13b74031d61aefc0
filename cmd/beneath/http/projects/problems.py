"""The problems of the project service's errors."""

from collections.abc import Mapping
from typing import Final

from beneath.http.core.problems import CHANGED, INVALID, NOT_FOUND, ProblemType
from models.name import InvalidName
from services.project.errors import ProjectChanged, ProjectNotFound

PROBLEMS: Final[Mapping[type[Exception], ProblemType]] = {
    InvalidName: INVALID,
    ProjectChanged: CHANGED,
    ProjectNotFound: NOT_FOUND,
}
