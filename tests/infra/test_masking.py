"""Masking of secrets in text, for secrets of any characters, in linear time."""

import json
import re
from collections.abc import Callable
from typing import Any, SupportsIndex
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infra import masking
from infra.masking import MASK, Masker, mask_text, mask_url, url_secrets

SECRET = "hunter2"
SCHEMES = ("postgresql", "redis", "rediss", "smtp", "smtp+starttls", "redis+sentinel")
ODD = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), max_size=8)
WITHOUT_BLANKS = st.text(st.characters(exclude_categories=("C", "Z")), max_size=8)


@given(st.sampled_from(SCHEMES), ODD, ODD, ODD)
@example("redis", "me@corp.com", "a@b/c?d#e ", " &'\"@")
@example("postgresql", "my user", "%41%", "%")
def test_a_password_of_any_characters_is_not_shown(scheme: str, user: str, before: str, after: str) -> None:
    password = f"{before}{SECRET}{after}"
    user = user.replace(":", "")
    for url in (f"{scheme}://{user}:{password}@host:1/db", f"{scheme}://{quote(user)}:{quote(password, safe='')}@host"):
        masker = Masker(url_secrets(url))
        assert SECRET not in mask_url(url)
        for text in (url, f"cannot reach {url}: refused", repr({"url": url}), json.dumps([url, url]), f"{password} is"):
            assert SECRET not in masker(text)


@given(st.sampled_from(SCHEMES), WITHOUT_BLANKS, WITHOUT_BLANKS)
@example("redis", "a@b/c?d#e'\"", "&@")
def test_a_password_in_text_of_unknown_origin_is_not_shown(scheme: str, before: str, after: str) -> None:
    url = f"{scheme}://me@corp.com:{before}{SECRET}{after}@host/db"
    assert SECRET not in mask_text(f"cannot reach {url} now")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me@corp.com:hunter2@host/db", f"postgresql://me@corp.com:{MASK}@host/db"),
        ("to postgresql://my user:hunter2@host/db", f"to postgresql://my user:{MASK}@host/db"),
        ("to postgresql://me@corp.com:hun ter2@host/db", f"to postgresql://me@corp.com:{MASK}@host/db"),
        ("to redis://user:p@ss hunter2@host:1 or so", f"to redis://user:{MASK}@host:1 or so"),
        ("redis://u:p@one and redis://u:p@two", f"redis://u:{MASK}@one and redis://u:{MASK}@two"),
        ("'postgresql://u:12 34@host/db', 'b'", f"'postgresql://u:{MASK}@host/db', 'b'"),
        ("cut off: postgresql://ada:hunter2", f"cut off: postgresql://ada:{MASK}"),
        ("redis://hunter2@host", f"redis://{MASK}@host"),
        ("?password=hunter2;x&b=1", f"?password={MASK}&b=1"),
        ("redis://h?sentinel_password=hunter2&db=1", f"redis://h?sentinel_password={MASK}&db=1"),
        ("host=db password='hun ter2' user=ada", f"host=db password='{MASK}' user=ada"),
        ("{'sslpassword': 'hunter2', 'x': 1}", f"{{'sslpassword': '{MASK}', 'x': 1}}"),
        (r'{"api_key":"hun\"ter2","x":1}', f'{{"api_key":"{MASK}","x":1}}'),
        ("Authorization: Basic aHVudGVyMg==", f"Authorization: Basic {MASK}"),
        ("http://[::1]:80/x and redis://host:6379: refused", None),
        ("(redis://host:6379), https://medium.com/@me", None),
        ("see http://host/x, mail ada@example.com, pass: 3", None),
    ],
)
def test_text_is_masked_exactly_where_secrets_are(text: str, shown: str | None) -> None:
    assert mask_text(text) == (text if shown is None else shown)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "postgresql://ada:x@db/app?pass%77ord=y&pool_size=3&sslmode",
            f"postgresql://ada:{MASK}@db/app?pass%77ord={MASK}&pool_size=3&sslmode",
        ),
        ("redis://db/0?sentinel_password=p@hunter2", f"redis://{MASK}@{MASK}"),
        ("redis://u:x@db/0?sentinel_password=p@hunter2", f"redis://{MASK}@{MASK}"),
        ("redis://u:a/b@db/0", f"redis://u:{MASK}@db/0"),
        ("redis://h:1/0?unknown=y#z", f"redis://h:1/0?unknown={MASK}#{MASK}"),
        ("sqlite:////data/a@b.db", "sqlite:////data/a@b.db"),
        ("redis://default:hunter2", f"redis://{MASK}"),
        ("redis://:hunter2", f"redis://{MASK}"),
        ("postgresql://ada:hun/ter2", f"postgresql://{MASK}"),
        ("postgresql://host/ada:hunter2", f"postgresql://{MASK}"),
        ("redis://host/hunter2", f"redis://{MASK}"),
        ("redis://host:1/0?,hunter2'=x", f"redis://host:1/0?{MASK}"),
        ("postgresql://ada@[::1]:5,h2:6/my-app", f"postgresql://{MASK}@[::1]:5,h2:6/my-app"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("not a url", MASK),
        ("", ""),
    ],
)
def test_url_shows_only_parts_known_to_be_harmless(url: str, shown: str) -> None:
    assert mask_url(url) == shown


@pytest.mark.parametrize("url", ["redis://default:hunter2", "redis://:hunter2", "postgresql://ada:hunter2"])
def test_a_password_without_a_host_is_a_known_secret(url: str) -> None:
    assert SECRET not in Masker(url_secrets(url))(f"{url}: no address for {SECRET}")


def test_a_known_secret_is_masked_wherever_it_occurs() -> None:
    masker = Masker(url_secrets("redis://u:a%2Fb%20hunter2@h?sentinel_password=correcthorse"))
    assert masker("got 'a/b hunter2', a%2Fb%20hunter2 and correcthorse") == f"got '{MASK}', {MASK} and {MASK}"


@pytest.mark.parametrize("option", ["p@ss hunter2", "hun ter2", "é", "a/b", "?a@b"])
def test_an_option_of_any_characters_is_a_known_secret(option: str) -> None:
    password = f"{option}-{SECRET}"
    for spelled in (password, quote(password, safe=""), password.replace(" ", "+")):
        masker = Masker(url_secrets(f"redis://ada:correct@db/0?sentinel_password={spelled}&protocol=3"))
        assert SECRET not in masker(f"refused: {spelled}, {quote(password)} or {spelled!r}")
        assert SECRET not in masker(f"refused: {password.encode()!r} or {password!a}")
        assert "correct" not in masker("refused: 'x correct x'")


def test_password_visible_elsewhere_in_its_url_is_no_known_secret() -> None:
    assert url_secrets("postgresql://beneath:beneath@host/beneath") == {"postgresql://beneath:beneath@host/beneath"}
    assert url_secrets("postgresql://beneath@host/app") == {"postgresql://beneath@host/app"}


class Text(str):  # noqa: SLOT000 - it has an attribute
    """A string that counts the characters that searches read."""

    read = 0

    def find(self, sub: str, start: SupportsIndex | None = None, end: SupportsIndex | None = None, /) -> int:
        return self._count(super().find(sub, start, end), start, end)

    def rfind(self, sub: str, start: SupportsIndex | None = None, end: SupportsIndex | None = None, /) -> int:
        first, last = int(start or 0), len(self) if end is None else int(end)
        self.read += last - first
        return super().rfind(sub, start, end)

    def _count(self, found: int, start: SupportsIndex | None, end: SupportsIndex | None) -> int:
        last = len(self) if end is None else int(end)
        self.read += max(0, (found if found >= 0 else last) - int(start or 0)) + 1
        return found


class Pattern:
    """A pattern that counts the characters that its searches read."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern

    def search(self, text: str, start: int = 0, end: int | None = None) -> re.Match[str] | None:
        return self._counted(text, start, end, self._pattern.search)

    def match(self, text: str, start: int = 0, end: int | None = None) -> re.Match[str] | None:
        return self._counted(text, start, end, self._pattern.match)

    def fullmatch(self, text: str) -> re.Match[str] | None:
        return self._pattern.fullmatch(text)

    def _counted(
        self, text: str, start: int, end: int | None, do: Callable[..., re.Match[str] | None]
    ) -> re.Match[str] | None:
        last = len(text) if end is None else end
        found = do(text, start, last)
        if isinstance(text, Text) and (found is not None or do == self._pattern.search):
            text.read += (found.end() if found else last) - start + 1
        return found


HOSTILE: dict[str, Callable[[int], str]] = {
    "compact JSON of URLs": lambda n: json.dumps(
        [f"http://10.0.0.1:8080/v1/{i}" for i in range(n)], separators=(",", ":")
    ),
    "URLs without quotes": lambda n: "http://a:8080/" * n,
    "no host at all": lambda n: "://a:b " * n,
    "passwords": lambda n: "://a:b@ " * n,
    "open quotations": lambda n: "'://a:" * n,
    "nested quotations": lambda n: "\"://`://'://" * n,
    "escaped quotations": lambda n: '\\"://' * n,
    "one open quotation": lambda n: '"://' + '\\"' * n,
    "names": lambda n: "password-" * n,
    "values": lambda n: "token:'" * n,
    "quotes": lambda n: "password=" + '"' * n,
    "bearer": lambda n: "bearer " * n,
    "at signs": lambda n: "://@" * n,
    "bare hosts": lambda n: "://a " * n,
    "bare hosts before an address": lambda n: "://a " * n + "x@y",
}


@pytest.mark.parametrize("shape", HOSTILE)
def test_masking_reads_each_character_a_bounded_number_of_times(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in vars(masking).copy().items():
        if isinstance(value, re.Pattern):
            monkeypatch.setattr(masking, name, Pattern(value))
    closing: dict[tuple[str, bool], Any] = {key: Pattern(value) for key, value in masking._CLOSING.items()}
    monkeypatch.setattr(masking, "_CLOSING", closing)
    per_character = []
    for count in (500, 4000):
        text = Text(HOSTILE[shape](count))
        mask_text(text)
        per_character.append(text.read / len(text))
    assert per_character[1] <= per_character[0] * 1.2 + 1
