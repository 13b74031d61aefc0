"""The services, as a dependency of routes."""

from typing import Annotated

from fastapi import Depends, Request

from dependencies import AllServices


async def services_of(request: Request) -> AllServices:
    """Return the services that `create_app` was called with."""
    services: AllServices = request.app.state.services
    return services


Using = Annotated[AllServices, Depends(services_of)]
