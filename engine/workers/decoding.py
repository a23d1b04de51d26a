"""Bytes -> text, whatever they were encoded in.

Rule: strict first. A byte order mark, then what is declared if it fits without an error, then UTF-8, then a detected
legacy encoding; only the last resort replaces what it cannot read, and says so.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import BinaryIO, Final

from engine.workers.types import encoding_of_start

#: Detection looks at so many bytes: more makes it slower, not better.
_SAMPLE_BYTES: Final = 32_768
_BLOCK_BYTES: Final = 1 << 18
#: What is met in mails, exports and old text files; without the list, rare relatives of these win ties.
_CANDIDATES: Final = [
    *("cp1252", "cp1250", "iso8859_2", "cp1251", "koi8_r", "cp1253", "cp1254", "cp1255", "cp1256"),
    *("cp932", "euc_jp", "iso2022_jp", "gb18030", "big5", "cp949"),
]
#: Python calls these text encodings too.
_NOT_CHARSETS: Final = frozenset(
    {"idna", "punycode", "raw-unicode-escape", "unicode-escape", "mbcs", "oem", "undefined"}
)
#: Declared names that writers use for a superset; browsers read them so too (WHATWG Encoding Standard).
_SUPERSETS: Final = {
    "ascii": "utf-8",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "ks_c_5601-1987": "cp949",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """encoding: as Python calls it; cut: there was more than the limit; replaced: some bytes could not be read."""

    text: str
    encoding: str
    cut: bool = False
    replaced: bool = False


def decode(data: bytes, declared: str = "") -> Decoded:
    """All of `data`; `declared` is a charset as a header or tag names it."""
    import io

    return decode_stream(io.BytesIO(data), declared=declared, limit_chars=len(data) + 1)


def decode_stream(file: BinaryIO, *, limit_chars: int, declared: str = "") -> Decoded:
    """At most `limit_chars` characters of a file from its beginning, in memory bounded by them."""
    file.seek(0)
    head = file.read(_SAMPLE_BYTES)
    known = encoding_of_start(head)
    for encoding in (known, _codec(declared), "iso2022_jp" if _escapes(head) else "utf-8"):
        if not encoding:
            continue
        try:
            return _decoded(file, encoding, limit_chars, errors="strict")
        except UnicodeError as error:
            if encoding == "utf-8" and isinstance(error, UnicodeDecodeError):
                head = _around(head, error)
    encoding = known or detected(head)
    try:
        return _decoded(file, encoding, limit_chars, errors="strict")
    except UnicodeError:
        return _decoded(file, encoding, limit_chars, errors="replace")


def detected(sample: bytes) -> str:
    """The likeliest legacy encoding; UTF-8 for text that is UTF-8 but for a few bytes."""
    damaged = sample.decode("utf-8", "replace")
    broken = damaged.count("\ufffd")
    whole = sum(sign > "\x7f" for sign in damaged) - broken
    if whole > 4 * broken:
        return "utf-8"
    from charset_normalizer import from_bytes

    best = from_bytes(sample[:_SAMPLE_BYTES], cp_isolation=_CANDIDATES).best()
    return best.encoding if best is not None and best.encoding != "ascii" else "cp1252"


def _decoded(file: BinaryIO, encoding: str, limit_chars: int, *, errors: str) -> Decoded:
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    file.seek(0)
    pieces: list[str] = []
    length = 0
    while length <= limit_chars:
        block = file.read(_BLOCK_BYTES)
        piece = decoder.decode(block, final=not block)
        pieces.append(piece)
        length += len(piece)
        if not block:
            break
    text = "".join(pieces)
    cut = len(text) > limit_chars
    text = text[:limit_chars].removeprefix("\ufeff")
    return Decoded(text=text, encoding=encoding, cut=cut, replaced=errors == "replace" and "\ufffd" in text)


def _codec(declared: str) -> str:
    """The codec of a declared charset, "" when it is none of text."""
    try:
        info = codecs.lookup(declared.strip().strip("\"'")[:100])
    except (LookupError, ValueError):
        return ""
    if not info._is_text_encoding or info.name.replace("_", "-") in _NOT_CHARSETS:
        return ""
    return _SUPERSETS.get(info.name, info.name)


def _escapes(head: bytes) -> bool:
    """ISO-2022-JP is pure ASCII to the eye of UTF-8."""
    return b"\x1b$B" in head or b"\x1b$@" in head


def _around(head: bytes, error: UnicodeDecodeError) -> bytes:
    """A sample that has the offending bytes in it, also when they come long after an ASCII beginning."""
    if not head.isascii():
        return head
    where = bytes(error.object[max(0, error.start - 256) : error.start + _SAMPLE_BYTES // 2])
    return where or head
