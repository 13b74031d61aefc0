"""Masks secrets in text: passwords in URLs, values under secret-looking names, bearer tokens, known secrets.

Secrets are found by parsing and not by a pattern for what a password looks like: a password may hold any character, and
a user name too. Where a text can be read in two ways, the reading that hides more counts. Every function takes time
linear in the length of its text, whatever the text is: it may come from a handler's error, in the event loop.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from urllib.parse import quote, quote_plus, unquote, unquote_plus

MASK = "**********"

SHORTEST = 6
"""Characters of the shortest password that is masked wherever it occurs; shorter ones are masked in URLs only."""

_NAMES = (
    r"password|passwd|passphrase|pwd|secret|token|authorization|cookie|credential|signature"
    r"|(?:api|access|private)[_-]?key"
)
_HINTS = ("pass", "pwd", "secret", "token", "auth", "cookie", "credential", "signature", "key", "bearer")
_SECRET_NAME = re.compile(_NAMES, re.IGNORECASE)
# Bounded repetitions: an unbounded one would read to the end of a long word again at each of its characters.
_NAMED_VALUE = re.compile(
    rf"(?:{_NAMES})[\w.-]{{0,40}}\\?[\"']?\s{{0,3}}(?:=>|[=:])\s{{0,3}}(?:(?:bearer|basic|digest)\s{{1,3}})?"
    r"|\bbearer\s{1,3}",
    re.IGNORECASE,
)
_OPENING = re.compile(r"[bBrRuUfF]{0,2}(\\?)([\"'])")
# A quote ends a value only where it can end one in JSON, Python or a sentence.
_BARE_VALUE = re.compile(r"(?:[^&\s\"']|[\"'](?![\s,:)\]}]|$))+")
_SPACE = re.compile(r"\s")
_LINE_END = re.compile(r"[\r\n]")
_AFTER_AUTHORITY = re.compile(r"[/?#\s\"'<>`]")
_HOST = re.compile(r"(?:\[[^\]]*\]|[^:\[\]]*)(?::\d*)?[.;:!)\]}]*")
_SERVER = re.compile(r"(?:\[[\w:.%]*\]|[\w.%-]*)(?::\d{0,5})?")
_NUMBERED = re.compile(r"\d{0,5}")
_NAMED = re.compile(r"[\w.%-]*")
_SCHEME_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-.")
_LONGEST_SCHEME = 32
_QUOTES = "\"'`"
_CLOSING = {
    (mark, escaped): re.compile(mark if escaped else rf"(?<!\\){mark}") for mark in _QUOTES for escaped in (False, True)
}
_AT = re.compile("@")

_SHOWN_OPTIONS = frozenset(
    {
        *("application_name", "command_timeout", "connect_timeout", "pool_size", "prepared_statements"),
        *(
            "sslmode",
            "sslrootcert",
            "sslcert",
            "sslkey",
            "sslcrl",
            "ssl_cert_reqs",
            "ssl_ca_certs",
            "ssl_check_hostname",
        ),
        *("host", "port", "db", "user", "username", "mode"),
    }
)
"""The options of a setting's URL whose values are shown; what is not known to be harmless is masked."""


def is_secret_name(name: str) -> bool:
    """Return whether a value under this name is a secret."""
    return _SECRET_NAME.search(name) is not None


def mask_url(url: str) -> str:
    """Return `url`, a text that is a URL as a whole, with all but its known and harmless parts masked.

    Shown are scheme, user name (if a password follows it), host, port, path, and options known to be harmless.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return MASK if url else url
    userinfo, at, location = rest.rpartition("@")
    if scheme.startswith("sqlite") and rest.startswith("/"):
        userinfo, at, location = "", "", rest  # a file, whose name may hold an @
    user, colon, _ = userinfo.partition(":")
    shown = f"{user}:{MASK}@" if colon else f"{MASK}@" if at else ""
    if "?" in userinfo or "#" in userinfo:
        # A password with such a character, or an option with an @: then what follows is a part of the option.
        return f"{scheme}://{MASK}@{MASK}"
    location, fragment, _ = location.partition("#")
    path, question, query = location.partition("?")
    if not _is_place(scheme, path):
        # A password without the @ and the host behind it, or one that was put in the place of something else.
        return f"{scheme}://{MASK}"
    options = "&".join(_shown_option(each) for each in query.split("&")) if query else ""
    return f"{scheme}://{shown}{path}{question}{options}{fragment}{MASK if fragment else ''}"


def url_secrets(url: str) -> set[str]:
    """Return the texts that must not be shown because `url` is secret: itself, its password, its secret options.

    Not among them are passwords that are short, or that another part of the URL shows anyway (`guest:guest@`), and user
    names without a password: masked wherever they occur they would make logs unreadable and tell what they are.
    """
    _, _, rest = url.partition("://")
    userinfo, _, location = rest.rpartition("@")
    authority = rest[: after.start()] if (after := _AFTER_AUTHORITY.search(rest)) else rest
    # A password may hold any character, and so may an option: each reading has its secrets.
    found = [each.partition(":")[2] for each in (userinfo, authority.rpartition("@")[0])]
    if mask_url(url).endswith(f"://{MASK}"):
        found += [rest, rest.partition(":")[2]]
    for query in (location.partition("#")[0].partition("?")[2], rest.partition("?")[2]):
        for each in query.split("&"):
            name, _, value = each.partition("=")
            if unquote_plus(name).lower() not in _SHOWN_OPTIONS:
                found.append(value)
    public = mask_url(url).replace(MASK, " ").lower()
    spelled = {spelling for raw in found for spelling in (raw, unquote(raw), unquote_plus(raw))}
    secrets = {it for it in spelled if len(it) >= SHORTEST and it.lower() not in public}
    return secrets | ({url} if mask_url(url) != url else set())


class Masker:
    """Masks what looks like a secret, and `secrets` wherever they occur, also percent-encoded or escaped."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        spellings = {spelling for each in secrets for spelling in _spellings(each) if len(spelling) >= SHORTEST}
        self._known: Collection[str] = sorted(spellings, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Return `text` with every secret masked."""
        for each in self._known:
            if each in text:
                text = text.replace(each, MASK)
        return mask_text(text)


def mask_text(text: str) -> str:
    """Return `text` with passwords in URLs, values under secret-looking names, and bearer tokens masked."""
    if "://" in text:
        text = _spliced(text, _passwords(text))
    lowered = text.lower()
    if any(each in lowered for each in _HINTS):  # much faster than the pattern, and most texts end here
        text = _spliced(text, _values(text))
    return text


def _is_place(scheme: str, path: str) -> bool:
    """Return whether `path`, of a URL without user, password and options, names servers and what is on them."""
    if scheme.startswith(("sqlite", "unix")):
        return True
    servers, _, below = path.partition("/")
    form = _NUMBERED if scheme.startswith(("redis", "smtp")) else _NAMED
    return form.fullmatch(below) is not None and all(_SERVER.fullmatch(each) for each in servers.split(","))


def _shown_option(option: str) -> str:
    name, equals, _ = option.partition("=")
    if unquote_plus(name).lower() in _SHOWN_OPTIONS:
        return option
    return f"{name}={MASK}" if equals and _NAMED.fullmatch(name) else MASK


def _spellings(secret: str) -> set[str]:
    return {
        secret,
        quote(secret, safe="", errors="replace"),
        quote(secret, errors="replace"),
        quote(secret, safe=" +", errors="replace"),
        quote_plus(secret, errors="replace"),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        repr(secret)[1:-1],
        ascii(secret)[1:-1],
        repr(secret.encode(errors="replace"))[2:-1],
    }


def _spliced(text: str, spans: Iterator[tuple[int, int]]) -> str:
    """Return `text` with the given spans, in order and without overlaps, replaced by the mask."""
    parts: list[str] = []
    done = 0
    for start, end in spans:
        parts += (text[done:start], MASK)
        done = end
    return "".join(parts) + text[done:] if parts else text


class _Next:
    """Finds the next match of a pattern. All calls with growing positions take one pass over the text together."""

    def __init__(self, text: str, pattern: re.Pattern[str]) -> None:
        self._text = text
        self._pattern = pattern
        self._from = self._at = -1

    def __call__(self, position: int) -> int:
        """Return the start of the first match at or after `position`; the length of the text if there is none."""
        if not self._from <= position <= self._at:
            found = self._pattern.search(self._text, position)
            self._from, self._at = position, found.start() if found else len(self._text)
        return self._at


class _Quotations:
    """Finds the ends of quotations, which do not extend beyond their lines."""

    def __init__(self, text: str) -> None:
        self._line_end = _Next(text, _LINE_END)
        self._marks = {key: _Next(text, pattern) for key, pattern in _CLOSING.items()}

    def line_end(self, start: int) -> int:
        """Return where the line ends."""
        return self._line_end(start)

    def end(self, start: int, mark: str, *, escaped: bool) -> int:
        """Return where the quotation ends that began before `start`; -1 if it does not end on this line."""
        at = self._marks[mark, escaped](start)
        return at if at < self._line_end(start) else -1


def _values(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the values under secret-looking names are, quotes excluded."""
    quotations = _Quotations(text)
    position = 0
    while (name := _NAMED_VALUE.search(text, position)) is not None:
        position = name.end()
        opening = _OPENING.match(text, position)
        if opening is not None:
            start = opening.end()
            end = quotations.end(start, opening[2], escaped=bool(opening[1]))
            end = quotations.line_end(start) if end < 0 else end
        else:
            bare = _BARE_VALUE.match(text, position)
            start, end = bare.span() if bare else (position, position)
        if end > start:
            yield start, end
            position = end


def _passwords(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the passwords of URLs are; a user name without a password counts as one."""
    words = _Words(text)
    position = 0
    while (found := text.find("://", position)) >= 0:
        start = position = found + 3
        end, at = words.extent(found, start)
        if _is_no_host(text, start if at < 0 else at + 1, end):
            # No host looks like that, so it is a piece of user and password: one with a blank in it, or cut off.
            at = words.next_at(end)
        elif _is_bare(text, start if at < 0 else at + 1, end):
            # A host, or the beginning of a user name or the end of a password with a blank in it.
            further = words.next_at(end)
            if further >= 0 and text.find("://", end, further) < 0 and (at >= 0 or text.find(":", end, further) >= 0):
                at = further
            elif at < 0:
                continue
        elif at < 0:
            continue
        end = at if at >= 0 else end
        colon = text.find(":", start, end)
        if colon >= 0:
            start = colon + 1
        elif _AFTER_AUTHORITY.search(text, start, end):
            continue  # an @ in a path
        if end > start and text[start:end].lower() != "password":  # that one is an example
            yield start, end
        position = max(end, position)


class _Words:
    """Finds the ends of the URLs in a text, and the last @ of each."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._space = _Next(text, _SPACE)
        self._at = _Next(text, _AT)
        self._quotations = _Quotations(text)
        self._last_end = self._last_at = -1

    def extent(self, found: int, start: int) -> tuple[int, int]:
        """Return the end of the URL whose `://` is at `found`, and the position of its last @, or -1 without one."""
        text = self._text
        before = found
        while before > 0 and found - before < _LONGEST_SCHEME and text[before - 1] in _SCHEME_LETTERS:
            before -= 1
        if before > 0 and text[before - 1] in _QUOTES:
            escaped = before > 1 and text[before - 2] == "\\"
            end = self._quotations.end(start, text[before - 1], escaped=escaped)
            if end >= 0:
                return end, text.rfind("@", start, end)
        end = self._space(start)
        if end != self._last_end:
            self._last_end, self._last_at = end, text.rfind("@", start, end)
        return end, self._last_at if self._last_at >= start else -1

    def next_at(self, position: int) -> int:
        """Return where the next @ on this line is, from `position` on; -1 if there is none."""
        at = self._at(position)
        return at if at < self._quotations.line_end(position) else -1


def _is_bare(text: str, start: int, end: int) -> bool:
    return end > start and text.find(":", start, end) < 0 and _AFTER_AUTHORITY.search(text, start, end) is None


def _is_no_host(text: str, start: int, end: int) -> bool:
    after = _AFTER_AUTHORITY.search(text, start, end)
    authority = text[start : after.start() if after else end]
    return not all(_HOST.fullmatch(each) for each in authority.split(","))
