"""The domains that an API consists of."""

import pytest

from beneath.http.core.domain import Domain
from beneath.http.core.problems import CHANGED, NOT_FOUND
from tests.http.conftest import bare_api


class Refused(Exception):
    """An error of a service."""


def test_two_domains_may_give_an_error_one_problem_type() -> None:
    app = bare_api(Domain(problems={Refused: NOT_FOUND}), Domain(problems={Refused: NOT_FOUND}))
    assert Refused in app.exception_handlers


def test_two_domains_cannot_give_an_error_two_problem_types() -> None:
    with pytest.raises(ValueError, match="Refused has two problem types: not-found and changed"):
        bare_api(Domain(problems={Refused: NOT_FOUND}), Domain(problems={Refused: CHANGED}))
