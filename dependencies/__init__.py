"""The composition root: the only package that chooses drivers. It imports all others but `beneath`."""

from dependencies.container import Container
from dependencies.errors import IncompleteContainer, SettingsError, SetupError
from dependencies.services import AllServices
from dependencies.settings import Settings
from dependencies.sources import load_settings

__all__ = [
    "AllServices",
    "Container",
    "IncompleteContainer",
    "Settings",
    "SettingsError",
    "SetupError",
    "load_settings",
]
