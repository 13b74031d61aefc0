"""A service that a clone adds: it greets each new user, has a table, a setting, a route and tests."""

from typing import Final

FILES: Final = {
    "models/greeting.py": '''\
"""Greetings of users."""

from uuid import UUID

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base, new_id


class Greeting(Base):
    """A text for one user."""

    __tablename__ = "greetings"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[UUID] = mapped_column(ForeignKey("users.id"), index=True)
    text: Mapped[str] = mapped_column(String(300))
''',
    "services/greeting/__init__.py": '"""Greetings of users."""\n',
    "services/greeting/service.py": '''\
"""Greeting: a text for each new user."""

from collections.abc import Sequence
from uuid import UUID

import structlog
from sqlalchemy import select

from bus import Bus
from infra.db import Database
from models.greeting import Greeting
from models.user import UserCreated

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class GreetingService:
    """The owner of the greetings."""

    def __init__(self, bus: Bus, db: Database, *, word: str) -> None:
        self._db = db
        self._word = word
        bus.add_async_listener(self.greet, once=True)

    async def greet(self, event: UserCreated) -> None:
        """Write the greeting of a new user."""
        async with self._db.transaction() as tx:
            tx.session.add(Greeting(user_id=event.user_id, text=f"{self._word}, {event.name}"))
        log.info("greeting written")

    async def list_greetings(self, user_id: UUID) -> Sequence[Greeting]:
        """Return the user's greetings, oldest first."""
        async with self._db.read() as session:
            query = select(Greeting).where(Greeting.user_id == user_id).order_by(Greeting.id)
            return (await session.scalars(query)).all()
''',
    "cmd/beneath/http/greetings/__init__.py": '''\
"""The greetings of a user."""

from beneath.http.core.domain import Domain
from beneath.http.greetings import routes

DOMAIN = Domain(routes.router)
''',
    "cmd/beneath/http/greetings/routes.py": '''\
"""The route of a user's greetings."""

from fastapi import APIRouter

from beneath.http.auth import Reader
from beneath.http.core.openapi import AUTHENTICATED, problems
from beneath.http.core.routing import ApiRoute
from beneath.http.services import Using

router = APIRouter(prefix="/greetings", tags=["greetings"], route_class=ApiRoute)


@router.get("", responses=problems(*AUTHENTICATED))
async def list_greetings(caller: Reader, using: Using) -> list[str]:
    """List the texts of your greetings."""
    return [each.text for each in await using.greeting.list_greetings(caller.user_id)]
''',
    "tests/http/test_greetings.py": """\
from tests.http.conftest import Api


async def test_new_user_is_greeted(api: Api) -> None:
    ada = await api.sign_up()
    await api.domain.kit.drain()
    assert (await ada("GET", "/v1/greetings")).json() == ["Hello, Ada"]
""",
}
"""The new files, by path."""

CHANGES: Final = (
    ("models/__init__.py", "from models import ", "from models import greeting, "),
    ("models/__init__.py", '"Base", ', '"Base", "greeting", '),
    ("cmd/beneath/http/domains.py", "import idempotency", "import greetings, idempotency"),
    ("cmd/beneath/http/domains.py", "    secrets.DOMAIN,\n", "    secrets.DOMAIN,\n    greetings.DOMAIN,\n"),
    (
        "dependencies/services.py",
        "from services.idempotency",
        "from services.greeting.service import GreetingService\nfrom services.idempotency",
    ),
    ("dependencies/services.py", "    user: UserService\n", "    user: UserService\n    greeting: GreetingService\n"),
    (
        "dependencies/services.py",
        "            user=self.user,\n",
        "            user=self.user,\n            greeting=self.greeting,\n",
    ),
    (
        "dependencies/services.py",
        "        self.idempotency = Thread",
        (
            "        self.greeting = ThreadSafeSingleton(\n"
            "            GreetingService, bus=infra.bus, db=infra.db, word=infra.settings.provided.greeting.word\n"
            "        )\n"
            "        self.idempotency = Thread"
        ),
    ),
    (
        "dependencies/service_settings.py",
        "\n\nclass ServiceSettings(BaseSettings):\n",
        (
            "\nfrom dependencies.section import Section\n\n\n"
            'class GreetingSettings(Section):\n    """Greetings."""\n\n'
            '    word: str = "Hello"\n    """The first word of a greeting."""\n\n\n'
            "class ServiceSettings(BaseSettings):\n"
        ),
    ),
    ("pyproject.toml", 'name = "beneath-backend"', 'name = "greetings"'),
    ("README.md", "# Beneath\n", "# Greetings\n"),
)
"""The changed lines: file, old text, new text."""

SETTINGS: Final = "\n    greeting: GreetingSettings = GreetingSettings()\n"
"""The last lines of `dependencies/service_settings.py`."""
