"""The settings of the services: a section for each service that has some. This file is yours.

A section's key and its field's name form the key of a setting, like `organization.invite_lifetime`; the other settings
are in `dependencies.settings`.
"""

from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings

from dependencies.section import Section


class OrganizationSettings(Section):
    """Organizations and their members."""

    invite_lifetime: Annotated[float, Field(gt=0, le=365 * 86_400, allow_inf_nan=False)] = 7 * 86_400.0
    """Seconds until a pending invite expires."""

    max_invites: Annotated[int, Field(ge=1, le=10_000)] = 50
    """Invites that one user may make in an hour, over all organizations and processes."""


class ServiceSettings(BaseSettings):
    """The sections of the services; `Settings` adds those of the framework."""

    organization: OrganizationSettings = OrganizationSettings()
