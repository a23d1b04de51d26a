"""The words for a source: `folder:PATH`, `mbox:PATH`, `maildir:PATH`, `ics:PATH`, with parameters after a `?`; and
`given:mail`, `given:events`, `given:files` for what a product handed over.

Rule: PATH is taken literally, question marks included; the query begins at the last `?` that a known parameter
follows. Values may be percent-encoded (`%26` for `&`). Every mistake says the thing, the reason and the way out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote

from engine.errors import UsageError
from engine.ports import Source
from engine.sizes import parse_size
from engine.sources import given
from engine.sources.calendar import CalendarSource
from engine.sources.folder import FolderSource
from engine.sources.mailbox import MaildirSource, MboxSource
from engine.sources.rules import DEFAULT_MAX_SIZE_BYTES, Rules

_SCHEMES: Final[dict[str, Callable[[str, str, Rules], Source]]] = {
    "folder": FolderSource,
    "mbox": MboxSource,
    "maildir": MaildirSource,
    "ics": CalendarSource,
}
_PARAMETERS: Final = ("since", "exclude", "max_size")
#: Where patterns have names to be compared with. A mail in a mailbox has none that means anything to a person.
_WITH_NAMES: Final = frozenset({"folder", "ics"})
_QUERY: Final = re.compile(r"\?(?=(?:" + "|".join(_PARAMETERS) + r")=)")
_LOOKS_LIKE_QUERY: Final = re.compile(r"\?([a-z_]+)=[^/]*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceUri:
    """A parsed source. `path` is absolute, or what was given; `str()` of it parses to the same again."""

    scheme: str
    path: str
    rules: Rules

    def __str__(self) -> str:
        words = [
            f"exclude={quote(pattern, safe='/*?[]! ', errors='surrogateescape')}" for pattern in self.rules.exclude
        ]
        if self.rules.since is not None:
            words.append(f"since={datetime.fromtimestamp(self.rules.since, UTC).date().isoformat()}")
        if self.rules.max_size_bytes != DEFAULT_MAX_SIZE_BYTES:
            words.append(f"max_size={self.rules.max_size_bytes}")
        if not words and (_QUERY.search(self.path) or _LOOKS_LIKE_QUERY.search(self.path)):
            # A path that looks like one with parameters is taken whole only in front of real ones.
            words.append(f"max_size={DEFAULT_MAX_SIZE_BYTES}")
        return f"{self.scheme}:{self.path}" + ("?" + "&".join(words) if words else "")


def open_source(uri: str, *, own_folder: str = "", user_folder: Path | None = None) -> Source:
    """The source that `uri` names; nothing is opened until it is listed. Raises UsageError.

    own_folder: our own data, which may lie within a source: indexing it would change it, without end.
    user_folder: of the user whose source it is; what was given lies in there, and nowhere else.
    """
    parsed = parse_uri(uri)
    if parsed.scheme == given.SCHEME:
        if user_folder is None:
            raise UsageError(f"source {uri!r}: it belongs to a user; name the user")
        return given.GivenSource(uri, user_folder, parsed.path)
    return _SCHEMES[parsed.scheme](str(parsed), parsed.path, replace(parsed.rules, own_folder=own_folder))


def parse_uri(uri: str) -> SourceUri:
    """The parts of a source's URI, `~` expanded and the path made absolute. Raises UsageError."""
    scheme, colon, rest = uri.partition(":")
    if scheme == given.SCHEME and colon:
        if rest not in given.KINDS:
            raise UsageError(f"source {uri!r}: given are {', '.join(given.KINDS)}; write given:mail, for one")
        return SourceUri(scheme=scheme, path=rest, rules=Rules())
    if not colon or scheme not in _SCHEMES:
        found = f"{scheme!r} is not a kind of source" if colon else "it does not say what kind of source it is"
        ways = ", ".join(f"{name}:PATH" for name in _SCHEMES)
        raise UsageError(f"source {uri!r}: {found}; write one of {ways}")
    if "\0" in rest:
        raise UsageError(f"source {uri!r}: the path holds a NUL character; no file can have that name")
    try:
        rest.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError(
            f"source {uri!r}: the path is not UTF-8 and cannot be stored; make a symbolic link to it with another name"
        ) from None
    path, query = _split(uri, rest)
    if not path:
        raise UsageError(f"source {uri!r}: the path is missing; write {scheme}:PATH")
    return SourceUri(scheme=scheme, path=os.path.abspath(os.path.expanduser(path)), rules=_rules(uri, scheme, query))


def _split(uri: str, rest: str) -> tuple[str, str]:
    starts = [match.start() for match in _QUERY.finditer(rest)]
    if starts:
        return rest[: starts[-1]], rest[starts[-1] + 1 :]
    doubtful = _LOOKS_LIKE_QUERY.search(rest)
    # A folder may really be called that; a slip of the pen is likelier where none is.
    if doubtful and not os.path.lexists(os.path.expanduser(rest)):
        raise _unknown_parameter(uri, doubtful.group(1))
    return rest, ""


def _rules(uri: str, scheme: str, query: str) -> Rules:
    since: float | None = None
    exclude: list[str] = []
    max_size_bytes = DEFAULT_MAX_SIZE_BYTES
    for word in filter(None, query.split("&")):
        name, _, value = word.partition("=")
        value = unquote(value, errors="surrogateescape")
        match name:
            case "since":
                since = _since(uri, value)
            case "exclude":
                if scheme not in _WITH_NAMES:
                    raise UsageError(f"source {uri!r}: exclude compares file names, a {scheme} has none; leave it out")
                if not value:
                    raise UsageError(f"source {uri!r}: exclude is empty; write a pattern such as exclude=*.tmp")
                exclude.append(value)
            case "max_size":
                max_size_bytes = _size(uri, value)
            case _:
                raise _unknown_parameter(uri, name)
    return Rules(since=since, exclude=tuple(exclude), max_size_bytes=max_size_bytes)


def _since(uri: str, value: str) -> float:
    try:
        return datetime.strptime(value, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        raise UsageError(f"source {uri!r}: since={value} is not a date; write it as since=2024-01-31") from None


def _size(uri: str, value: str) -> int:
    try:
        size = parse_size(value)
    except ValueError:
        size = 0
    if size < 1:
        raise UsageError(f"source {uri!r}: max_size={value} is not a size; write it as max_size=50MB")
    return size


def _unknown_parameter(uri: str, name: str) -> UsageError:
    return UsageError(f"source {uri!r}: there is no parameter {name!r}; known are {', '.join(_PARAMETERS)}")
