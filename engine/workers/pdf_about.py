"""What a PDF says about itself: title, author, date, and the numbers of its pages.

Rule: nothing of it is trusted: texts are any texts, numbers any numbers, and what says nothing is left out.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any, Final

from engine.workers.reading import clean, line

_NO_TITLE = re.compile(r"^untitled|^slide 1$|^\W*$|\.(docx?|pptx?|xlsx?|tex|dvi|indd|qxd|rtf)$", re.IGNORECASE)
_MEANINGLESS = re.compile("[\ufffd\ue000-\uf8ff\U000f0000-\U0010fffd]")
#: Page labels: ranges of one file, characters of one label.
_MAX_LABEL_RANGES, _LABEL_CHARS = 10_000, 40
#: The greatest numbers that are written in Roman numerals and in letters: beyond, they are as long as they are great.
_MOST_ROMAN, _MOST_LETTERS = 3_999, 26 * 5
#: Of each place, from the thousands on, how its digits are written.
_ROMAN: Final = (
    ("", "m", "mm", "mmm"),
    ("", "c", "cc", "ccc", "cd", "d", "dc", "dcc", "dccc", "cm"),
    ("", "x", "xx", "xxx", "xl", "l", "lx", "lxx", "lxxx", "xc"),
    ("", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix"),
)


def title_of(pdf: Any) -> str:
    """The title in its metadata, "" where that says nothing."""
    title = clean(str((pdf.metadata or {}).get("title") or "")).strip()
    title = re.sub(r"^Microsoft (Office )?(Word|PowerPoint|Excel) - ", "", title)
    # Writers leave their own working names in this field; the file's name says more.
    if len(title) < 3 or _NO_TITLE.search(title):
        return ""
    return "" if _MEANINGLESS.search(title) else title


def facts_of(pdf: Any) -> dict[str, str]:
    """Author, subject, keywords and date, as far as they are given."""
    metadata = pdf.metadata or {}
    return {
        "author": str(metadata.get("author") or ""),
        "subject": str(metadata.get("subject") or ""),
        "keywords": str(metadata.get("keywords") or ""),
        "date": _date(str(metadata.get("creationDate") or "")),
    }


def _date(value: str) -> str:
    """A PDF date (ISO 32000, 7.9.4), "D:20260301093000+01'00'", as ISO 8601; "" when it is none."""
    match = re.match(r"D?:?(\d{4})(\d\d)(\d\d)(?:(\d\d)(\d\d)(\d\d)?)?(?:(Z)|([+-]\d\d)'?(\d\d)?)?", value)
    if not match:
        return ""
    year, month, day, hour, minute, second, utc, zone, zone_minute = match.groups()
    if not ("01" <= month <= "12" and "01" <= day <= "31"):
        return ""
    date = f"{year}-{month}-{day}"
    if hour is None:
        return date
    offset = "+00:00" if utc else f"{zone}:{zone_minute or '00'}" if zone else ""
    return f"{date}T{hour}:{minute}:{second or '00'}{offset}"


def labels_of(pdf: Any) -> list[str]:
    """The label that the file gives to each page (ISO 32000, 12.4.2): "iv", "A-3"; empty where it gives none.

    Raises what PyMuPDF raises for objects that are not what they should be.
    """
    ranges = sorted(pdf.get_page_labels()[:_MAX_LABEL_RANGES], key=lambda rule: int(rule["startpage"]))
    starts = [int(rule["startpage"]) for rule in ranges]
    if not starts:
        return []
    found = [bisect_right(starts, index) - 1 for index in range(pdf.page_count)]
    return [_label(ranges[at], index - starts[at]) if at >= 0 else "" for index, at in enumerate(found)]


def _label(rule: Mapping[str, Any], beyond: int) -> str:
    number = int(rule.get("firstpagenum") or 1) + beyond
    style = str(rule.get("style") or "")
    numeral = ""
    if style == "D":
        numeral = str(number)
    elif style in ("r", "R") and 0 < number <= _MOST_ROMAN:
        numeral = "".join(digits[int(digit)] for digits, digit in zip(_ROMAN, f"{number:04}", strict=True))
        numeral = numeral if style == "r" else numeral.upper()
    elif style in ("a", "A") and 0 < number <= _MOST_LETTERS:
        # a to z, then aa to zz, and so on.
        numeral = chr(ord(style) + (number - 1) % 26) * ((number - 1) // 26 + 1)
    return line(f"{_prefix(str(rule.get('prefix') or ''))}{numeral}", _LABEL_CHARS)


def _prefix(written: str) -> str:
    """PyMuPDF gives the prefix as it is written in the file: a text, or its bytes as digits, often UTF-16."""
    if not (written.startswith("<") and written.endswith(">")):
        return written
    try:
        raw = bytes.fromhex(written[1:-1][: 8 * _LABEL_CHARS])
    except ValueError:
        return written
    return raw.decode("utf-16", "replace") if raw[:2] in (b"\xfe\xff", b"\xff\xfe") else raw.decode("latin-1")
