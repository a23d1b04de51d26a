"""A mail (RFC 5322, MIME) -> its headers as facts, its body as text, its attachments as parts.

Rule: never refuse a mail. The standard library finds the parts; header values are decoded here, in linear time and
without raising, because its structured headers take seconds and gigabytes for what strangers may send. What is
malformed is read as the plain bytes that it is.

    bytes -> header block, bounded -> parser -> leaves -> body | attachments
"""

from __future__ import annotations

import base64
import binascii
import email.message
import email.parser
import email.policy
import email.utils
import os
import quopri
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC
from typing import Final

from engine.document import MAX_FIELD_CHARS, Document, Page
from engine.model import Kind
from engine.ports import Place
from engine.workers.decoding import decode
from engine.workers.markup import html_to_text
from engine.workers.reading import Budget, Material, Parts, ask_memory, base_name, line, tidy

#: Bytes of the header block. The longest honest ones, mailing lists with hundreds of recipients, have some 50 kB.
MAX_HEADER_BYTES: Final = 256 << 10
#: Bytes of one header value that are decoded.
MAX_VALUE_CHARS: Final = 64 << 10
#: Characters of a header that says what a part is: the library takes it apart in the square of its length. A name of
#: 255 characters, each of them three bytes written as nine, fits.
MAX_PART_HEADER_CHARS: Final = 4_000
#: Characters of one address with its name, before decoding.
MAX_PERSON_CHARS: Final = 4_000
#: Lines that look like MIME boundaries; each may become a part, and a part takes 2 kB of memory.
MAX_BOUNDARIES: Final = 20_000
#: Headers of all its parts together.
MAX_HEADERS: Final = 100_000
#: Memory that a line takes while its part is gathered, beside its letters: a text object and its place in a list.
_LINE_BYTES: Final = 57
_FEED_BYTES: Final = 1 << 16
#: Bytes of a mail that are read. Providers refuse beyond 150 MB.
MAX_MAIL_BYTES: Final = 256 << 20
#: What a browser that saves a page in one file (MHTML) puts beside it.
_CODE: Final = frozenset({"text/css", "text/javascript"})
#: Levels of parts within parts; people forward a forwarded mail some ten times.
MAX_DEPTH: Final = 50

#: Of the legacy API, whose headers are plain text: email.message_from_bytes with the policy compat32.
_MailMessage = email.message.Message

_ENCODED_WORD = re.compile(r"=\?([^?\s]{1,60})\?([bBqQ])\?([^?]*)\?=")
_HEADER_END = re.compile(rb"(?>\r\n|\r|\n){2}")
#: What raises in the standard library's parser and its messages when a mail is not what it should be.
_TROUBLE: Final = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError, binascii.Error)


def read(material: Material) -> Document:
    """A document of kind mail, also for a mail without body or headers. Its parts are written into the outbox."""
    with open(material.path, "rb") as file:
        # No more than there is: the memory for what is asked for is taken before a byte is read.
        data = file.read(min(os.fstat(file.fileno()).st_size, MAX_MAIL_BYTES + 1))
    notes = [f"the mail was cut at {MAX_MAIL_BYTES} bytes"] if len(data) > MAX_MAIL_BYTES else []
    data, header_notes = _bounded(data[:MAX_MAIL_BYTES])
    message, parse_notes = _parsed(data, material.place)
    del data  # the parts have it now
    content = _Content(budget=Budget(limit=material.max_text_bytes), parts=Parts(material), material=material)
    content.notes += [*notes, *header_notes, *parse_notes]
    try:
        content.gather(message, depth=0)
    except RecursionError:
        content.notes.append("parts nested too deeply were left out")
    facts = _facts(message)
    return material.document(
        kind=Kind.MAIL,
        title=_field(message, "subject") or "(no subject)",
        pages=[Page(number=0, text=content.budget.joined(content.body))],
        parts=content.parts.written,
        facts=facts,
        notes=[*dict.fromkeys(content.notes), *content.parts.notes(), *content.budget.notes()],
    )


def _bounded(data: bytes) -> tuple[bytes, list[str]]:
    """The mail with a header block of at most MAX_HEADER_BYTES, without an mbox separator or byte order mark."""
    data = data.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    if data.startswith((b"From ", b">From ")):
        data = data[data.find(b"\n") + 1 :] if b"\n" in data else b""
    end = re.search(rb"\r?\n\r?\n", data)
    stop = end.start() if end else len(data)
    if stop <= MAX_HEADER_BYTES:
        return data, []
    rest = data[end.end() :] if end else b""
    return data[:MAX_HEADER_BYTES] + b"\n\n" + rest, [f"the headers were cut at {MAX_HEADER_BYTES} bytes"]


def _parsed(data: bytes, place: Place) -> tuple[_MailMessage, list[str]]:
    """The tree of parts; for one that is too wide or too deep only the headers, with all else as text.

    Raises StageFailed(OUT_OF_MEMORY).
    """
    message = _plain(data)
    if message.get_content_maintype() not in ("multipart", "message"):
        return message, []  # what follows the headers is one piece, and need not be taken apart line by line
    ask_memory(place, len(data) + data.count(b"\n") * _LINE_BYTES, f"taking apart a mail of {len(data)} bytes")
    if data.count(b"\n--") <= MAX_BOUNDARIES:
        try:
            return _tree(data), []
        except _TROUBLE:
            pass
    for name in ("content-type", "content-transfer-encoding"):
        del message[name]
    return message, ["the parts are too many or nested too deeply: the mail was read as plain text"]


def _plain(data: bytes) -> _MailMessage:
    """The headers, and everything after them in one piece."""
    end = _HEADER_END.search(data)
    stop = end.end() if end else len(data)
    try:
        policy = _Counting()
        parser = email.parser.BytesParser(policy.new_message, policy=policy)
        message = parser.parsebytes(data[:stop], headersonly=True)
        strays = str(message.get_payload())  # a line that is no header ends them, and begins the text
    except _TROUBLE:
        message, strays, stop = _MailMessage(), "", 0
    # Without a copy of the bytes, and none of the text where there are no strays.
    message.set_payload(strays + str(memoryview(data)[stop:], "ascii", "surrogateescape"))
    return message


def _tree(data: bytes) -> _MailMessage:
    """Raises _TROUBLE, _TooMany among it."""
    policy = _Counting()
    parser = email.parser.BytesFeedParser(policy.new_message, policy=policy)
    for at in range(0, len(data), _FEED_BYTES):
        parser.feed(data[at : at + _FEED_BYTES])
    return parser.close()


class _TooMany(ValueError):  # noqa: N818 - caught as what it is, a mail in trouble
    """More parts or headers than a mail may have."""


class _Counting(email.policy.Compat32):
    """The plain policy, with an eye on what the parser makes: lines that look like boundaries are not all there is to
    make parts from (the blocks of a delivery report; boundaries after a bare carriage return)."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "_made", {"parts": 0, "headers": 0})  # policies refuse to be written to

    def new_message(self, policy: object = None) -> _MailMessage:
        """For the parser: an empty part. Raises _TooMany."""
        self._count("parts", MAX_BOUNDARIES)
        return _MailMessage(email.policy.compat32)

    def header_source_parse(self, sourcelines: list[str]) -> tuple[str, str]:
        """As the plain policy does. Raises _TooMany."""
        self._count("headers", MAX_HEADERS)
        name, value = super().header_source_parse(sourcelines)
        return name, value[:MAX_PART_HEADER_CHARS] if name.lower().startswith("content-") else value

    def _count(self, what: str, limit: int) -> None:
        made: dict[str, int] = self.__dict__["_made"]
        made[what] += 1
        if made[what] > limit:
            raise _TooMany(f"more than {limit} {what}")


@dataclass(slots=True)
class _Content:
    """The body and the attachments, as they are found."""

    budget: Budget
    parts: Parts
    material: Material
    body: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    leaves: int = 0

    def gather(self, message: _MailMessage, depth: int) -> None:
        """Take in a part with all that is in it."""
        kind = message.get_content_type()
        if depth > MAX_DEPTH:
            self.notes.append(f"parts nested more than {MAX_DEPTH} deep were left out")
        elif kind == "message/rfc822" and depth and message.is_multipart():
            self._attach_mail(message)
        elif kind == "multipart/alternative" and message.is_multipart():
            self._gather_alternative(message, depth)
        elif message.is_multipart():
            if kind == "multipart/encrypted":
                self.notes.append("the mail is encrypted")
            for part in _children(message):
                self.gather(part, depth + 1)
        else:
            self._leaf(message, kind)

    def _gather_alternative(self, message: _MailMessage, depth: int) -> None:
        """The same text in several forms: plain text where it says anything, else HTML; the rest is attached."""
        texts: dict[str, _MailMessage] = {}
        others: list[_MailMessage] = []
        for part in _children(message):
            kind = part.get_content_type()
            if kind in ("text/plain", "text/html") and not _is_attached(part) and kind not in texts:
                texts[kind] = part
            elif part.is_multipart() or not kind.startswith("text/") or kind == "text/calendar":
                others.append(part)
        said = len(self.body)
        for kind in ("text/plain", "text/html"):
            if kind in texts and len(self.body) == said:
                self._text(texts[kind], kind)
        for part in others:
            before = len(self.body)
            self.gather(part, depth + 1)
            if said != before and _is_text_container(part):
                del self.body[before:]  # multipart/related around the HTML form of what has been read already

    def _leaf(self, message: _MailMessage, kind: str) -> None:
        self.leaves += 1
        self.material.place.progress(self.leaves, self.leaves)
        if kind in ("text/plain", "text/html") and not _is_attached(message):
            self._text(message, kind)
        elif kind in _CODE and not _is_attached(message):
            pass
        elif (
            kind.startswith(("text/", "message/", "multipart/"))
            and kind != "text/calendar"
            and not _is_attached(message)
        ):
            self._text(message, "text/plain")
        else:
            data = _bytes_of(message)
            if data or _is_attached(message):
                self.parts.add(_file_name(message) or _made_up_name(kind, self.leaves), kind, data)

    def _text(self, message: _MailMessage, kind: str) -> None:
        found = decode(_bytes_of(message), _charset(message))
        self.notes += found.notes("body")
        if kind == "text/html":
            _, text = html_to_text(found.text, self.budget, self.material.place.progress)
        else:
            text = self.budget.take(tidy(found.text))
        if text.strip():
            self.body.append(text)

    def _attach_mail(self, message: _MailMessage) -> None:
        for inner in _children(message)[:1]:
            try:
                data = inner.as_bytes(policy=email.policy.compat32)
            except (*_TROUBLE, UnicodeError):
                data = "\n".join(str(part) for part in inner.walk()).encode("utf-8", "replace")
            subject = _field(inner, "subject")
            name = _file_name(message) or (f"{subject[:100]}.eml" if subject else "message.eml")
            self.parts.add(name.replace("/", "-"), "message/rfc822", data)


def _children(message: _MailMessage) -> list[_MailMessage]:
    payload: object = message.get_payload()
    return [part for part in payload if isinstance(part, _MailMessage)] if isinstance(payload, list) else []


def _is_text_container(message: _MailMessage) -> bool:
    return message.is_multipart() and message.get_content_type() in ("multipart/related", "multipart/mixed")


def _is_attached(message: _MailMessage) -> bool:
    disposition = _raw(message, "content-disposition").strip().lower()
    return disposition.startswith("attachment") or bool(_file_name(message))


def _bytes_of(message: _MailMessage) -> bytes:
    """The decoded payload; where its transfer encoding is broken, as much as can be decoded, or the raw bytes."""
    try:
        decoded: object = message.get_payload(decode=True)
    except (*_TROUBLE, UnicodeError):
        return b""
    if not isinstance(decoded, bytes):
        return b""
    named = _raw(message, "content-transfer-encoding").lower()
    match named.strip(" \t\"';."):
        case said if said == named:
            return decoded
        case "base64":  # some write more than the bare word, which the library does not take for it
            return _base64(decoded)
        case "quoted-printable":
            return quopri.decodestring(decoded)
        case _:
            return decoded


def _raw_bytes(text: str) -> bytes:
    """The bytes that the parser hid in a text: those beyond ASCII are lone surrogates (PEP 383)."""
    try:
        return text.encode("ascii", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape")


def _base64(raw: bytes) -> bytes:
    """Whatever whole groups of four there are; other signs are passed over (RFC 2045, 6.8)."""
    signs = re.sub(rb"[^A-Za-z0-9+/]", b"", raw)
    signs = signs[:-1] if len(signs) % 4 == 1 else signs
    try:
        return base64.b64decode(signs + b"=" * (-len(signs) % 4))
    except binascii.Error:
        return raw


def _charset(message: _MailMessage) -> str:
    match = re.search(r"charset\s*=\s*[\"']?([^\"';\s]{2,60})", _raw(message, "content-type"), re.IGNORECASE)
    return match.group(1) if match else ""


def _made_up_name(kind: str, number: int) -> str:
    endings = {"text/calendar": "ics", "image/jpeg": "jpg", "application/pgp-signature": "asc"}
    ending = endings.get(kind, kind.partition("/")[2])
    return f"part {number}.{ending}" if re.fullmatch(r"[a-z0-9]{1,5}", ending) else f"part {number}"


def _file_name(message: _MailMessage) -> str:
    """The name that the sender gave a part: RFC 2231, encoded words, or raw bytes."""
    try:
        found = message.get_filename()
    except (*_TROUBLE, UnicodeError):
        found = None
    if found is None:
        disposition = _raw(message, "content-disposition") + ";" + _raw(message, "content-type")
        match = re.search(r"\b(?:file)?name\*?\s*=\s*(\"[^\"]*\"|[^\s;]+)", disposition, re.IGNORECASE)
        found = match.group(1).strip('"') if match else ""
    return base_name(line(_decoded_words(str(found)[:MAX_VALUE_CHARS]), 255))


# --- headers ---------------------------------------------------------------------------------------------------------


def _facts(message: _MailMessage) -> dict[str, str]:
    return {
        "sender": _addresses(message, "from") or _addresses(message, "sender"),
        "recipients": _addresses(message, "to"),
        "cc": _addresses(message, "cc"),
        "bcc": _addresses(message, "bcc"),
        "date": _date(message),
        "message_id": _field(message, "message-id"),
        "in_reply_to": _field(message, "in-reply-to"),
        "references": line(_field(message, "references"), MAX_FIELD_CHARS),
        "list_id": _field(message, "list-id"),
    }


def _raw(message: _MailMessage, name: str) -> str:
    """The first header of that name as it stands, bounded; bytes beyond ASCII as surrogates."""
    for key, value in message.raw_items():
        if key.lower() == name:
            return str(value)[:MAX_VALUE_CHARS]
    return ""


def _field(message: _MailMessage, name: str) -> str:
    """A header as text: unfolded, encoded words decoded, raw bytes read as what they most likely are."""
    return line(_decoded_words(_raw(message, name)), MAX_FIELD_CHARS)


def _decoded_words(value: str) -> str:
    """RFC 2047, leniently: neighbours of one charset are joined before decoding, as many writers split letters."""
    if not value.isascii():
        value = decode(_raw_bytes(value)).text
    if "=?" not in value:
        return value
    pieces: list[str] = []
    charset, gathered, end = "", b"", 0
    for match in _ENCODED_WORD.finditer(value):
        between = value[end : match.start()]
        adjoining = end > 0 and not between.strip()
        if gathered and not (adjoining and match.group(1).lower() == charset):
            pieces.append(decode(gathered, charset.partition("*")[0]).text)
            gathered = b""
        if not adjoining:
            pieces.append(between)
        charset = match.group(1).lower()
        gathered += _word_bytes(match.group(2), match.group(3))
        end = match.end()
    if gathered:
        pieces.append(decode(gathered, charset.partition("*")[0]).text)
    return "".join([*pieces, value[end:]])


def _word_bytes(encoding: str, text: str) -> bytes:
    raw = text.encode("utf-8", "replace")
    if encoding in "bB":
        return _base64(raw)
    return quopri.decodestring(raw.replace(b"_", b" "))


def _addresses(message: _MailMessage, name: str) -> str:
    """ "Name <address>, ...": split before decoding, so that a comma inside an encoded name does not split it."""
    shown = [_person(entry) for entry in _split_addresses(_raw(message, name))]
    told, length = list[str](), 0
    for entry in filter(None, shown):
        length += len(entry) + 2
        if length > MAX_FIELD_CHARS - 40:
            told.append(f"and {len(shown) - len(told)} more")
            break
        told.append(entry)
    return ", ".join(told)


def _split_addresses(value: str) -> Iterator[str]:
    """Cut at commas outside of quotes and angle brackets, in one pass."""
    begin, quoted, angled, escaped = 0, False, False, False
    for at, sign in enumerate(value):
        if escaped:
            escaped = False
        elif sign == "\\" and quoted:
            escaped = True
        elif sign == '"':
            quoted = not quoted
        elif not quoted and sign in "<>":
            angled = sign == "<"
        elif sign == "," and not quoted and not angled:
            yield value[begin:at].strip()
            begin = at + 1
    yield value[begin:].strip()


def _person(entry: str) -> str:
    name, opening, rest = entry[:MAX_PERSON_CHARS].rpartition("<")
    address = rest.partition(">")[0]
    name = line(_decoded_words(re.sub(r"\\(.)", r"\1", name.strip().strip('"'))), 300) if opening else ""
    address = line(_decoded_words(address), 300)
    return f"{name} <{address}>" if name and address and name != address else name or address


def _date(message: _MailMessage) -> str:
    """When it was written, ISO 8601 with the sender's offset; else when it arrived; "" where neither can be read."""
    for value in (_raw(message, "date"), _raw(message, "received").rpartition(";")[2]):
        try:
            moment = email.utils.parsedate_to_datetime(" ".join(value[:200].split()))
            # "-0000" is UTC written by someone who does not tell where he is (RFC 5322, 3.3).
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()
        except (*_TROUBLE, OverflowError):
            continue
    return ""
