from tests.contract.budget import register


def pytest_configure() -> None:
    register()
