"""The fixture of the tests of documents."""

from tests.docs.conftest import application

__all__ = ["application"]
