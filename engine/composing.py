"""What a product has in hand (a mapping, a message object) -> the bytes of a mail or a calendar, for the readers.

Rule: values in, bytes out, and the same value gives the same bytes for ever: no clock, no random boundary, or nothing
would ever be seen to be unchanged. What strangers wrote into a field stays in that field: no line end of theirs is
written into a header (RFC 5322) or a property (RFC 5545). What cannot be written raises CannotComposeError.
"""

from __future__ import annotations

import base64
import binascii
import email.errors
import email.generator
import email.message
import email.mime.base
import email.mime.multipart
import email.mime.text
import email.policy
import email.utils
import hashlib
import io
import mimetypes
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Final
from zoneinfo import ZoneInfo

#: An id has a name in the ledger and is shown; message ids, the longest of the usual ones, have at most 998 bytes.
MAX_ID_CHARS: Final = 1_000
#: Of one header or short property. The reader looks at no more of a header (workers/read_mail.py).
_MAX_LINE_CHARS: Final = 64 << 10
#: Octets of a content line without its end (RFC 5545, 3.1).
_FOLD_BYTES: Final = 75

#: Of a mail so much is looked at for its id and its date; the reader takes no longer headers either.
_HEAD_BYTES: Final = 256 << 10

_CONTROLS: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
#: A description keeps its tabs and line ends; the latter are escaped.
_CONTROLS_BUT_LINES: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]+")
_MESSAGE_ID: Final = re.compile(rb"^message-id:[ \t]*(?:\r?\n[ \t]+)?([!-~]{1,998})", re.IGNORECASE | re.MULTILINE)
_DATE: Final = re.compile(rb"^date:[ \t]*([^\r\n]{1,200})", re.IGNORECASE | re.MULTILINE)
_UID: Final = re.compile(rb"^UID(?:;[^:\r\n]*)?:[ \t]*([^\r\n]{1,1000})", re.IGNORECASE | re.MULTILINE)
_RRULE: Final = re.compile(r"(?:RRULE:)?(FREQ=[A-Z0-9=;,:+-]{1,500})", re.IGNORECASE)
#: What the standard library raises for a message object that cannot be written.
_TROUBLE: Final = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError)
_AS_GIVEN: Final = email.policy.compat32.clone(max_line_length=None, linesep="\r\n")


class CannotComposeError(ValueError):
    """One item is not of a form that can be written; the message says what was found in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """An item, written. `space` and `id` name it for ever (sources/given.py); `path` is what a hit shows.

    modified: when a mail was sent, seconds since the epoch, as far as it says; 0.0 where unknown.
    """

    space: str
    id: str
    path: str
    content: bytes
    modified: float = 0.0


def own_id(given: Mapping[str, object]) -> str:
    """The caller's id, "" when there is none. Raises CannotComposeError."""
    found = given.get("id")
    if found is None or found == "":
        return ""
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise CannotComposeError(f"its id is of type {type(found).__name__}; give a text or a number")
    text = str(found)
    if len(text) > MAX_ID_CHARS:
        raise CannotComposeError(f"its id has {len(text):,} characters; at most {MAX_ID_CHARS:,} are taken")
    return text


# --- mails -----------------------------------------------------------------------------------------------------------


def compose_mail(given: object) -> Composed:
    """RFC 822 bytes, a message object, or a mapping: id, subject, from or sender, to, cc, bcc, date, body or text,
    html, thread_id, message_id, in_reply_to, references, attachments (mappings of name and content); or id and raw.

    Without an id the bytes themselves are the identity: a stranger, who may write any Message-ID into a mail, must not
    be able to put it in the place of another one. Raises CannotComposeError.
    """
    match given:
        case bytes() | bytearray() | memoryview():
            return _mail("", bytes(given))
        case email.message.Message():
            try:
                return _mail("", given.as_bytes())
            except (*_TROUBLE, email.errors.MessageError) as error:
                raise CannotComposeError(f"the message cannot be written: {error}") from None
        case Mapping():
            return _mail(own_id(given), _raw(given) if given.get("raw") is not None else _mail_of(given))
        case _:
            raise CannotComposeError(f"a mail is bytes, a message or a mapping, not of type {type(given).__name__}")


def _mail(id_: str, content: bytes) -> Composed:
    if not content.strip():
        raise CannotComposeError("the mail is empty")
    head = re.split(rb"\r?\n\r?\n", content[:_HEAD_BYTES], maxsplit=1)[0]
    sent = _sent(head)
    if id_:
        return Composed(space="id", id=id_, path=id_one_line(id_), content=content, modified=sent)
    digest = hashlib.sha256(content).hexdigest()
    named = _MESSAGE_ID.search(head)
    path = named.group(1).decode("ascii") if named else f"mail {digest[:12]}"
    return Composed(space="content", id=digest, path=path, content=content, modified=sent)


def _sent(head: bytes) -> float:
    found = _DATE.search(head)
    try:
        return (
            email.utils.parsedate_to_datetime(found.group(1).decode("ascii", "replace")).timestamp() if found else 0.0
        )
    except (ValueError, TypeError, OverflowError, OSError):
        return 0.0


def _raw(given: Mapping[str, object]) -> bytes:
    """The mail as it is: bytes, or base64url as the Gmail API has it."""
    match given["raw"]:
        case bytes() | bytearray() | memoryview() as raw:
            return bytes(raw)
        case str() as text:
            try:
                return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            except (binascii.Error, ValueError):
                raise CannotComposeError("its raw is no base64url") from None
        case other:
            raise CannotComposeError(f"its raw is of type {type(other).__name__}; give bytes, or base64url as a text")


def _mail_of(given: Mapping[str, object]) -> bytes:
    text = next((given[name] for name in ("body", "text") if given.get(name) is not None), None)
    html, attachments = given.get("html"), given.get("attachments") or ()
    if text is None and html is None and not attachments and not given.get("subject"):
        raise CannotComposeError("it has no subject, body, text, html, attachments or raw: nothing to search for")
    body = _body(text, html)
    if attachments:
        whole = email.mime.multipart.MIMEMultipart("mixed", boundary="=_nightmill_mixed", policy=_AS_GIVEN)
        whole.attach(body)
        for part in _attachments(attachments):
            whole.attach(part)
        body = whole
    sender = given.get("from") if given.get("from") is not None else given.get("sender")
    headers = {
        "From": _people("from", sender),
        "To": _people("to", given.get("to")),
        "Cc": _people("cc", given.get("cc")),
        "Bcc": _people("bcc", given.get("bcc")),
        "Subject": _line("subject", given.get("subject")),
        "Date": _mail_date(given.get("date")),
        "Message-ID": _line("message_id", given.get("message_id")),
        "In-Reply-To": _line("in_reply_to", given.get("in_reply_to")),
        "References": _line("references", given.get("references")),
        "X-Thread-ID": _line("thread_id", given.get("thread_id")),
    }
    for name, value in headers.items():
        if value:
            # Not encoded words but UTF-8 as it is (RFC 6532): the library writes such bytes unfolded and unchanged.
            body[name] = value.encode().decode("ascii", "surrogateescape")
    out = io.BytesIO()
    email.generator.BytesGenerator(out, mangle_from_=False, policy=_AS_GIVEN).flatten(body)
    return out.getvalue()


def _body(text: object, html: object) -> email.message.Message:
    forms = [
        email.mime.text.MIMEText(_text(name, value), subtype, "utf-8", policy=_AS_GIVEN)
        for name, value, subtype in (("body", text, "plain"), ("html", html, "html"))
        if value is not None
    ]
    if len(forms) < 2:
        return forms[0] if forms else email.mime.text.MIMEText("", "plain", "utf-8", policy=_AS_GIVEN)
    both = email.mime.multipart.MIMEMultipart("alternative", boundary="=_nightmill_alternative", policy=_AS_GIVEN)
    for form in forms:
        both.attach(form)
    return both


def _attachments(given: object) -> Iterator[email.message.Message]:
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence):
        raise CannotComposeError(f"its attachments are of type {type(given).__name__}; give a list of mappings")
    for number, entry in enumerate(given):
        if not isinstance(entry, Mapping):
            raise CannotComposeError(f"attachments[{number}] is of type {type(entry).__name__}; give a mapping")
        content = entry.get("content")
        if not isinstance(content, bytes | bytearray | memoryview):
            kind = type(content).__name__
            raise CannotComposeError(f"attachments[{number}]: its content is of type {kind}; give bytes")
        name = _line("name", entry.get("name")) or f"attachment {number + 1}"
        guessed = mimetypes.guess_type(name)[0] or "application/octet-stream"
        if guessed.startswith(("multipart/", "message/", "text/")):
            # Its bytes decide what it is (workers/types.py); as a text of the mail it would pass for the body.
            guessed = "application/octet-stream"
        part = email.mime.base.MIMEBase(*guessed.split("/", 1), policy=_AS_GIVEN)
        part.set_payload(base64.encodebytes(bytes(content)).decode("ascii"))
        part["Content-Transfer-Encoding"] = "base64"
        filename = name if name.isascii() else ("utf-8", "", name)
        part.add_header("Content-Disposition", "attachment", filename=filename)
        yield part


def _people(name: str, given: object) -> str:
    """Addresses as a header has them: a text, a mapping of name and email, or several of these."""
    match given:
        case None:
            return ""
        case str():
            return _line(name, given)
        case Mapping():
            address = given.get("email") if given.get("email") is not None else given.get("address")
            person = given.get("name") if given.get("name") is not None else given.get("displayName")
            return _person(_line(name, person), _line(name, address))
        case Sequence() if not isinstance(given, bytes):
            return ", ".join(filter(None, (_people(name, entry) for entry in given)))
        case _:
            raise CannotComposeError(f"its {name} is of type {type(given).__name__}; give an address, or a list")


def _person(name: str, address: str) -> str:
    address = re.sub(r"[\s<>,\"]", "", address)
    quoted = name.replace("\\", "\\\\").replace('"', "'")
    return f'"{quoted}" <{address}>' if name and address else address or (f'"{quoted}"' if name else "")


def _mail_date(given: object) -> str:
    if given is None:
        return ""
    if isinstance(given, str):
        try:
            given = datetime.fromisoformat(given.strip())
        except ValueError:
            # As mails write it, or as nobody does: the reader makes of it what it can.
            return _line("date", given)
    moment = _moment("date", given)
    if not isinstance(moment, datetime):
        moment = datetime(moment.year, moment.month, moment.day)
    try:
        return email.utils.format_datetime(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise CannotComposeError(f"its date {moment!r} cannot be written") from None


# --- events ----------------------------------------------------------------------------------------------------------


def compose_event(given: object) -> Composed:
    """The text or bytes of an iCalendar file, or a mapping: id, summary or title, start, end, location, description,
    organizer, attendees, recurrence, status, url, categories; as they are in the Google Calendar API too.

    Without an id its UID names a single event: events move, and are the same. Raises CannotComposeError.
    """
    match given:
        case str():
            return _calendar(given.encode("utf-8", "replace"))
        case bytes() | bytearray() | memoryview():
            return _calendar(bytes(given))
        case Mapping():
            return _event(given)
        case _:
            raise CannotComposeError(f"an event is iCalendar or a mapping, not of type {type(given).__name__}")


def _calendar(content: bytes) -> Composed:
    if not re.search(rb"^\s*BEGIN:VCALENDAR", content, re.IGNORECASE | re.MULTILINE):
        raise CannotComposeError("it is no iCalendar: it has no line BEGIN:VCALENDAR")
    unfolded = re.sub(rb"\r?\n[ \t]", b"", content)
    uids = {match.group(1).strip() for match in _UID.finditer(unfolded)}
    events = len(re.findall(rb"^BEGIN:(?:VEVENT|VTODO|VJOURNAL)\b", unfolded, re.IGNORECASE | re.MULTILINE))
    if events == 1 and len(uids) == 1:
        uid = uids.pop().decode("utf-8", "replace")
        return Composed(space="uid", id=uid, path=id_one_line(uid), content=content)
    digest = hashlib.sha256(content).hexdigest()
    return Composed(space="content", id=digest, path=f"calendar {digest[:12]}", content=content)


def _event(given: Mapping[str, object]) -> Composed:
    lines = ["BEGIN:VCALENDAR", "VERSION:2.0", "PRODID:-//Nightmill//given//EN", "BEGIN:VEVENT"]
    summary = given.get("summary") if given.get("summary") is not None else given.get("title")
    if given.get("start") is None:
        raise CannotComposeError("it has no start; give a date or a time")
    lines.append(f"DTSTART{_time('start', given['start'])}")
    if given.get("end") is not None:
        lines.append(f"DTEND{_time('end', given['end'])}")
    for name, value in (
        ("SUMMARY", summary),
        ("LOCATION", given.get("location")),
        ("DESCRIPTION", given.get("description")),
        ("STATUS", given.get("status")),
    ):
        if value is not None and value != "":
            lines.append(f"{name}:{_escaped(_text(name.lower(), value))}")
    url = _line("url", given.get("url") if given.get("url") is not None else given.get("htmlLink"))
    lines += [f"URL:{url}"] * bool(url)
    categories = given.get("categories")
    if categories is not None:
        named = [categories] if isinstance(categories, str) else _several("categories", categories)
        lines.append("CATEGORIES:" + ",".join(_escaped(_line("categories", each)) for each in named))
    lines += [f"ORGANIZER{person}" for person in _attendees("organizer", given.get("organizer"))]
    lines += [f"ATTENDEE{person}" for person in _attendees("attendees", given.get("attendees"))]
    lines += [f"RRULE:{rule}" for rule in _rules(given.get("recurrence"))]
    # Without the id, then with it: an event that says nothing of its id is known by what it says.
    body = "\n".join(lines)
    id_ = own_id(given) or _line("iCalUID", given.get("iCalUID"))
    space, named_id = ("id", id_) if id_ else ("content", hashlib.sha256(body.encode()).hexdigest())
    # DTSTAMP has to be there (RFC 5545, 3.6.1), and the time of writing would make each writing another one.
    lines += [f"UID:{_escaped(named_id)}", "DTSTAMP:19700101T000000Z", "END:VEVENT", "END:VCALENDAR"]
    content = b"".join(_folded(line) for line in lines)
    path = id_one_line(id_) or f"event {named_id[:12]}"
    return Composed(space=space, id=named_id, path=path, content=content)


def _time(name: str, given: object) -> str:
    """The rest of a DTSTART or DTEND line: parameters, colon, value. Zones are named, not defined (RFC 7809)."""
    moment = _moment(name, given)
    day = f"{moment.year:04d}{moment.month:02d}{moment.day:02d}"
    if not isinstance(moment, datetime):
        return f";VALUE=DATE:{day}"
    zone = moment.tzinfo
    if zone is None:
        return f":{day}{_clock(moment)}"
    if isinstance(zone, ZoneInfo) and zone.key and zone.key != "UTC":
        return f";TZID={zone.key}:{day}{_clock(moment)}"
    try:
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise CannotComposeError(f"its {name} {moment!r} cannot be written") from None
    return f":{moment.year:04d}{moment.month:02d}{moment.day:02d}{_clock(moment)}Z"


def _clock(moment: datetime) -> str:
    return f"T{moment.hour:02d}{moment.minute:02d}{moment.second:02d}"


def _moment(name: str, given: object) -> date | datetime:
    match given:
        case date():
            return given
        case str():
            try:
                text = given.strip()
                return date.fromisoformat(text) if len(text) == 10 else datetime.fromisoformat(text)
            except ValueError:
                raise CannotComposeError(f"its {name} {given[:100]!r} is no date or time (ISO 8601)") from None
        case bool():
            pass
        case int() | float():
            try:
                return datetime.fromtimestamp(given, UTC)
            except (ValueError, OverflowError, OSError):
                raise CannotComposeError(f"its {name} {given} is no time (seconds since the epoch)") from None
        case Mapping():
            for part in ("dateTime", "date"):
                if given.get(part) is not None:
                    return _in_zone(_moment(name, given[part]), given.get("timeZone"))
        case _:
            pass
    raise CannotComposeError(f"its {name} is of type {type(given).__name__}; give a date or a time")


def _in_zone(moment: date | datetime, zone: object) -> date | datetime:
    """The moment as the clocks of that zone show it, where the zone is one that is known here."""
    if not isinstance(moment, datetime) or not isinstance(zone, str):
        return moment
    try:
        known = ZoneInfo(zone)
        return moment.astimezone(known) if moment.tzinfo else moment.replace(tzinfo=known)
    except (ValueError, OverflowError, OSError, LookupError):
        return moment


def _attendees(name: str, given: object) -> Iterator[str]:
    for entry in [] if given is None else [given] if isinstance(given, str | Mapping) else _several(name, given):
        match entry:
            case str():
                said, _, address = _line(name, entry).rpartition("<")
                person, address = (said.strip(), address) if said else ("", address)
            case Mapping():
                person = _line(name, entry.get("displayName") if entry.get("displayName") else entry.get("name"))
                address = _line(name, entry.get("email"))
            case _:
                raise CannotComposeError(f"its {name} hold one of type {type(entry).__name__}; give an address")
        address = re.sub(r"[\s<>\"]", "", address)
        # No quote can be written in a parameter (RFC 5545, 3.2).
        called = f';CN="{person.strip(chr(34)).replace(chr(34), chr(39))}"' if person else ""
        if called or address:
            yield f"{called}:mailto:{address}"


def _rules(given: object) -> Iterator[str]:
    """Recurrence rules as they stand; lines of a recurrence that say something else are passed over."""
    for entry in [] if given is None else [given] if isinstance(given, str) else _several("recurrence", given):
        match = _RRULE.fullmatch(entry.strip()) if isinstance(entry, str) else None
        if match is not None:
            yield match.group(1).upper()


def _several(name: str, given: object) -> Sequence[object]:
    if isinstance(given, Sequence) and not isinstance(given, str | bytes):
        return given
    raise CannotComposeError(f"its {name} is of type {type(given).__name__}; give a list")


def _escaped(text: str) -> str:
    """TEXT of RFC 5545, 3.3.11."""
    text = text.replace("\\", "\\\\").replace(";", "\\;").replace(",", "\\,")
    return re.sub(r"\r\n?|\n|\u2028|\u2029", r"\\n", text)


def _folded(line: str) -> bytes:
    """A content line with its end, in pieces of 75 octets at most; no character is cut in two."""
    raw = line.encode()
    pieces: list[bytes] = []
    begin, room = 0, _FOLD_BYTES
    while len(raw) - begin > room:
        end = begin + room
        while raw[end] & 0xC0 == 0x80:
            end -= 1
        pieces.append(raw[begin:end])
        begin, room = end, _FOLD_BYTES - 1
    return b"\r\n ".join([*pieces, raw[begin:]]) + b"\r\n"


# --- words -----------------------------------------------------------------------------------------------------------


def id_one_line(id_: str) -> str:
    """An id for people."""
    return _CONTROLS.sub(" ", _sound(id_)).strip()


def _line(name: str, given: object) -> str:
    """A text of one line, without anything that ends a line or moves a cursor."""
    if given is None:
        return ""
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise CannotComposeError(f"its {name} is of type {type(given).__name__}; give a text")
    return _CONTROLS.sub(" ", _sound(str(given)[:_MAX_LINE_CHARS])).strip()


def _text(name: str, given: object) -> str:
    """A text of many lines."""
    if isinstance(given, bytes):
        given = given.decode("utf-8", "replace")
    if not isinstance(given, str):
        raise CannotComposeError(f"its {name} is of type {type(given).__name__}; give a text")
    return _CONTROLS_BUT_LINES.sub(" ", _sound(given))


def _sound(text: str) -> str:
    """Lone surrogates, which no encoding can write, become question marks."""
    return text.encode("utf-8", "replace").decode()
