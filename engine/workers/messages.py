"""What coordinator and worker say to each other: small frozen values, as bounded JSON, one per line of the pipe.

Rule: what comes from a worker is checked here, field by field; nothing of it is ever unpickled, and what breaks the
protocol raises MalformedMessage.

    coordinator -> worker   Begin (once)        UnitOrder ...
    worker -> coordinator   Ready (once)        Progress | ItemDone ...  UnitDone
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from engine.errors import MalformedMessage
from engine.model import Failure
from engine.printing import printable
from engine.reasons import Reason

#: Bytes of one message. Results of any size are files; the largest honest message is a unit of some hundred items.
MAX_MESSAGE_BYTES = 1 << 20
#: Of one that says numbers alone; a hundred or so are honest.
MAX_SMALL_BYTES = 1000
#: A worker ends with it after an order that has taken memory, or opened files, which it cannot give back.
EXIT_FULL = 75
#: What a worker cannot know, for it sees bytes alone: how it ended itself, where they came from, what a rule says of
#: them. Believed, these would keep a file out of quarantine, or make it seem to be left out on purpose.
NOT_A_WORKERS = frozenset(
    {
        *(Reason.KILLED, Reason.VANISHED, Reason.CHANGED_WHILE_READING, Reason.UNREADABLE, Reason.EXCLUDED),
        *(Reason.TOO_OLD, Reason.SYMBOLIC_LINK, Reason.NOT_A_FILE, Reason.SOURCE_MISSING, Reason.SOURCE_UNREADABLE),
        *(Reason.SOURCE_INCOMPLETE, Reason.REMOVALS_HELD),
    }
)
_FRAME = struct.Struct("!i")
#: An escape for half a character. `send` writes none; one may also stand in a text that speaks of such escapes.
_MAYBE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Begin:
    """What a worker is for: one stage, as the module that it is in; its options; the folder that holds its inbox,
    outbox and slate. `sandbox`: "auto", "strict" or "off"; `private`: folders that stay closed in any case;
    `rehearsal`: an order to be done before it is ready, None: none."""

    stage: str
    options: Mapping[str, Any]
    home: str
    sandbox: str = "off"
    private: tuple[str, ...] = ()
    rehearsal: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitOrder:
    """One unit: an order per item, done one after another.

    memory_bytes: what the worker may have in all while it does them, libraries included; 0: no limit of its own.
    """

    unit: int
    orders: tuple[Mapping[str, Any], ...]
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The stage is loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Something of the present item was finished."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemDone:
    """The item at `index` of the unit ended: with a result or with a failure, and what it took."""

    unit: int
    index: int
    result: Mapping[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitDone:
    """All items of the unit have been reported."""

    unit: int


Message = Begin | UnitOrder | Ready | Progress | ItemDone | UnitDone


def send(pipe: Connection, message: Message) -> None:
    """Raises OSError when the other side is gone.

    ValueError when the message is too large to be honest, or holds what `receive` would refuse: a number that is
    none or is infinite, text that UTF-8 cannot write.
    """
    # Field by field: `asdict` copies every order of a unit, three levels deep.
    table = {"is": type(message).__name__, **{name: getattr(message, name) for name in message.__slots__}}
    if isinstance(message, ItemDone) and message.failure is not None:
        table["failure"] = asdict(message.failure)
    data = json.dumps(table, allow_nan=False, ensure_ascii=False).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES} are allowed")
    pipe.send_bytes(data)


def receive(pipe: Connection) -> Message:
    """Raises EOFError when the other side is gone, MalformedMessage for anything that `send` would not have sent."""
    try:
        data = pipe.recv_bytes(MAX_MESSAGE_BYTES)
    except EOFError:
        raise
    except OSError as error:
        # The only OSError of `Connection` that says something of the message. The others, one for half a message
        # among them, mean that the other side died: what it died of is told by how its process ended.
        if str(error) != "bad message length":
            raise EOFError from error
        raise MalformedMessage(f"message larger than {MAX_MESSAGE_BYTES} bytes") from error
    return _parsed(data)


class Stream:
    """What a worker has written so far, taken apart into messages: never waits for the rest of one.

    The frames are those of `Connection.send_bytes`: four bytes of length, most significant first, and the message.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """The messages that `data` completes. Raises MalformedMessage."""
        self._buffer += data
        while len(self._buffer) >= _FRAME.size:
            (size,) = _FRAME.unpack_from(self._buffer)
            if not 0 <= size <= MAX_MESSAGE_BYTES:
                raise MalformedMessage(f"message of {size} bytes; at most {MAX_MESSAGE_BYTES} are allowed")
            if len(self._buffer) < _FRAME.size + size:
                return
            message = bytes(self._buffer[_FRAME.size : _FRAME.size + size])
            del self._buffer[: _FRAME.size + size]
            yield _parsed(message)


def _parsed(data: bytes) -> Message:
    try:
        table = json.loads(data.decode(), parse_constant=_number, parse_float=_number)
        if _MAYBE_SURROGATE.search(data):
            json.dumps(table, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise MalformedMessage("message is not JSON") from error
    if not isinstance(table, dict):
        raise MalformedMessage("message is not a table")
    message = _decoded(table)
    if len(data) > MAX_SMALL_BYTES and isinstance(message, Ready | Progress | UnitDone):
        raise MalformedMessage(f"message of {len(data)} bytes; at most {MAX_SMALL_BYTES} are allowed for this one")
    return message


def _number(text: str) -> float:
    """JSON knows no NaN and no infinity; Python reads both, and 1e999 as one. Raises ValueError."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a number")
    return value


def _decoded(table: dict[str, Any]) -> Message:
    match table.get("is"):
        case "Begin":
            return Begin(
                stage=_text(table, "stage"),
                options=_mapping(table, "options"),
                home=_text(table, "home"),
                sandbox=_text(table, "sandbox"),
                private=_texts(table, "private"),
                rehearsal=None if table.get("rehearsal") is None else _mapping(table, "rehearsal"),
            )
        case "UnitOrder":
            orders = table.get("orders")
            if not isinstance(orders, list) or not all(isinstance(order, dict) for order in orders):
                raise MalformedMessage("orders is not a list of tables")
            return UnitOrder(
                unit=_count(table, "unit"), orders=tuple(orders), memory_bytes=_count(table, "memory_bytes")
            )
        case "Ready":
            return Ready()
        case "Progress":
            return Progress(done=_count(table, "done"), total=_count(table, "total"))
        case "ItemDone":
            return ItemDone(
                unit=_count(table, "unit"),
                index=_count(table, "index"),
                result=_mapping(table, "result"),
                failure=_failure(table.get("failure")),
                cpu_seconds=_seconds(table, "cpu_seconds"),
                peak_bytes=_count(table, "peak_bytes"),
            )
        case "UnitDone":
            return UnitDone(unit=_count(table, "unit"))
        case str(other):
            raise MalformedMessage(f"no message is called {other[:100]!r}")
        case _:
            raise MalformedMessage("message does not say what it is")


def _failure(value: object) -> Failure | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise MalformedMessage("failure is not a table")
    code = _text(value, "reason")
    try:
        reason = Reason(code)
    except ValueError:
        raise MalformedMessage(f"{code[:100]!r} is no reason of the catalogue") from None
    if reason in NOT_A_WORKERS:
        raise MalformedMessage(f"{code!r} is no reason that a worker can give")
    return Failure(reason=reason, detail=printable(_text(value, "detail")))


def _text(table: Mapping[str, Any], name: str) -> str:
    value = table.get(name)
    if not isinstance(value, str):
        raise MalformedMessage(f"{name} is not a text")
    return value


def _texts(table: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = table.get(name)
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise MalformedMessage(f"{name} is not a list of texts")
    return tuple(value)


def _mapping(table: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = table.get(name)
    if not isinstance(value, dict):
        raise MalformedMessage(f"{name} is not a table")
    return value


def _count(table: Mapping[str, Any], name: str) -> int:
    value = table.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise MalformedMessage(f"{name} is not a count")
    return value


def _seconds(table: Mapping[str, Any], name: str) -> float:
    value = table.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise MalformedMessage(f"{name} is not a number of seconds")
    return float(value)
