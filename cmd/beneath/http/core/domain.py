"""The part of the API that belongs to one domain."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fastapi import APIRouter

from beneath.http.core.problems import ProblemType

_NO_PROBLEMS: Final[Mapping[type[Exception], ProblemType]] = MappingProxyType({})


class Domain:
    """The routers of a domain, and the problem type for each error that its services raise.

    An error that no domain lists becomes an internal error.
    """

    def __init__(self, *routers: APIRouter, problems: Mapping[type[Exception], ProblemType] = _NO_PROBLEMS) -> None:
        self.routers = routers
        self.problems = problems
