"""The routes of sign-up and of the user's own profile."""

from fastapi import APIRouter, Request, Response

from beneath.http.auth import Reader, Writer
from beneath.http.core.etags import Expected, tag
from beneath.http.core.limits import AddressLimit
from beneath.http.core.openapi import ANYWHERE, AUTHENTICATED, WITH_BODY, problems, versioned
from beneath.http.core.problems import CHANGED, TOO_MANY_REQUESTS
from beneath.http.core.routing import ApiRoute
from beneath.http.services import Using
from beneath.http.users.problems import EMAIL_TAKEN
from beneath.http.users.schemas import NewUser, SignedUp, UserChange, UserOut

router = APIRouter(tags=["users"], route_class=ApiRoute)


@router.post("/users", status_code=201, responses=problems(EMAIL_TAKEN, TOO_MANY_REQUESTS, *ANYWHERE, *WITH_BODY))
async def sign_up(body: NewUser, using: Using, request: Request) -> SignedUp:
    """Sign up, without authentication. You get an organization with a first project, and a welcome mail."""
    limit: AddressLimit = request.app.state.sign_up_limit
    limit.spend(request)
    return SignedUp.model_validate(await using.user.sign_up(body.email, body.name))


@router.get("/me", responses=versioned(200) | problems(*AUTHENTICATED))
async def show_me(caller: Reader, using: Using, response: Response) -> UserOut:
    """Show your own profile."""
    user = await using.user.get(caller.user_id)
    tag(response, user.version)
    return UserOut.model_validate(user)


@router.patch(
    "/me", responses=versioned(200) | problems(EMAIL_TAKEN, CHANGED, TOO_MANY_REQUESTS, *AUTHENTICATED, *WITH_BODY)
)
async def change_me(
    body: UserChange, caller: Writer, using: Using, expected: Expected, request: Request, response: Response
) -> UserOut:
    """Change your name or email."""
    changes = body.model_dump(exclude_unset=True)
    if "email" in changes and changes["email"] != caller.email:
        # Like a sign-up, the response reveals whether another user has the email.
        limit: AddressLimit = request.app.state.sign_up_limit
        limit.spend(request)
    user = await using.user.update(caller.user_id, **changes, expected_version=expected)
    tag(response, user.version)
    return UserOut.model_validate(user)
