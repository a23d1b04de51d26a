"""Plain text of any encoding, CSV, XML and HTML -> readable text.

Rule: streams. Nothing is kept of a file but the text that the document may have, so that the length of a line does not
matter; what has tags goes through markup.py.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Final

from engine.document import Document, Page
from engine.sizes import format_size
from engine.workers import types
from engine.workers.decoding import decode_stream
from engine.workers.markup import html_to_text, xml_to_text
from engine.workers.reading import Budget, Material

#: Markup read of one file, as a multiple of the text that the document may have: tags take most of a web page.
_MARKUP_FACTOR: Final = 5

#: Of a table, to find out what parts its cells, and which share of its rows must have as many of them.
_SAMPLE_CHARS: Final = 8192
_SAME_WIDTH: Final = 0.7

_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?([A-Za-z0-9_.:-]{2,40})""", re.IGNORECASE)
#: How Excel is told what parts the cells.
_SEPARATOR = re.compile(r'"?sep=([^\w\s"]|\t)"?\r?\n', re.IGNORECASE)
#: A quote within quotes, as spreadsheets write it and as databases do; `""` alone is an empty cell, and what ends a
#: cell, as in `"C:\\files\\"`, is none.
_DOUBLED = re.compile(r"""[^\s"\\;,|]""|""[^\s";,|]""")
_BACKSLASHED = re.compile(r"""\\"[^\s"';,|]""")
_ESCAPE = re.compile(r"""\\(["\\/bfnrt]|u[0-9A-Fa-f]{4})""")
_ESCAPED: Final = {'"': '"', "\\": "\\", "/": "/", "b": " ", "f": "\n", "n": "\n", "r": "\n", "t": "\t"}
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")

#: What programs tell a terminal in their logs: colours, and titles of windows (ECMA-48, 5.4 and 8.3.89). Letters stand
#: in it that would become part of the next word.
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]{0,100}[ -/]{0,9}[@-~]|\][^\x07\x1b\n]{0,1000}(?:\x07|\x1b\\))")

_XML_ENCODING = re.compile(rb"""\A\s*<\?xml[^>]{0,100}?encoding\s*=\s*["']([A-Za-z0-9_.:-]{2,40})["']""")


def read(material: Material) -> Document:
    """A document of one page, number 0. Raises StageFailed(BOMB) for XML whose entities multiply."""
    budget = Budget(limit=material.max_text_bytes)
    markup = material.media_type in (types.HTML, types.XML, "image/svg+xml")
    limit = material.max_text_bytes * (_MARKUP_FACTOR if markup else 1)
    with open(material.path, "rb") as file:
        head, size = file.read(4096), os.fstat(file.fileno()).st_size
        found = decode_stream(file, limit_chars=limit, declared=_declared(head) if markup else "")
    title, notes, report = "", [], material.place.progress
    if markup:
        if material.media_type == types.HTML:
            title, text = html_to_text(found.text, budget, report)
        else:
            text = xml_to_text(found.text, budget, report, drawing=material.media_type == "image/svg+xml")
        if found.cut:
            notes.append(f"partial: the markup was cut at {limit} characters")
    elif material.media_type in (types.CSV, types.TSV):
        text = budget.take(_rows(found.text, material))
    elif material.media_type == types.JSON:
        text = budget.take(_unescaped(found.text))
    else:
        text = budget.take(_TERMINAL.sub("", found.text) if "\x1b" in found.text else found.text)
    budget.cut = budget.cut or (found.cut and not markup)
    return material.document(
        title=title,
        pages=[Page(number=0, text=text)],
        notes=[*found.notes(), *notes, *budget.notes(f"the file has {format_size(size)}")],
    )


def _declared(head: bytes) -> str:
    """What the markup says in letters of ASCII: it cannot be UTF-16 then, whatever it says."""
    match = _XML_ENCODING.search(head) or _CHARSET.search(head)
    said = match.group(1).decode("ascii") if match else ""
    return "utf-8" if said.lower().startswith(("utf-16", "utf-32", "ucs-2")) else said


def _unescaped(text: str) -> str:
    """JSON as it is written, but for its letters: many programs write all beyond ASCII as escapes, which no one finds.

    Not parsed: what is damaged, cut, or one object on each line is read as well.
    """
    if "\\" not in text:
        return text
    text = _ESCAPE.sub(lambda match: _ESCAPED.get(match[1]) or chr(int(match[1][1:], 16)), text)
    # Characters beyond 16 bits are written as two escapes.
    return _PAIR.sub(lambda match: match[0].encode("utf-16", "surrogatepass").decode("utf-16"), text)


def _rows(text: str, material: Material) -> str:
    """The cells of each row joined by " | ". What is no table after all stays as it is."""
    said = _SEPARATOR.match(text)
    if said:
        text = text[said.end() :]
    sample = text[:_SAMPLE_CHARS]
    if _BACKSLASHED.search(sample) and not _DOUBLED.search(sample):
        text = text.replace('\\"', '""')
        sample = text[:_SAMPLE_CHARS]
    delimiter = (said and said.group(1)) or _delimiter(sample) or ("\t" if material.media_type == types.TSV else ",")
    csv.field_size_limit(1 << 20)
    try:
        rows = _csv(text, delimiter, _quote(sample, delimiter))
        return "\n".join(" | ".join(" ".join(cell.split()) for cell in row) for row in rows)
    except csv.Error:
        return text


def _delimiter(sample: str) -> str:
    """The one by which most rows have the same number of cells; "" when there is none. In one pass for each: the
    expressions of `csv.Sniffer` take the fourth power of a run of quotes, minutes for 400 of them."""
    best, found = _SAME_WIDTH, ""
    for delimiter in "\t;|,":  # a comma stands within cells more often than the others
        try:
            widths = Counter(len(row) for row in _csv(sample, delimiter, '"') if row)
        except csv.Error:
            continue
        width, rows = widths.most_common(1)[0] if widths else (0, 0)
        if width > 1 and rows > best * widths.total():
            best, found = rows / widths.total(), delimiter
    return found


def _quote(sample: str, delimiter: str) -> str:
    """Single quotes only where no other is used, and as many cells begin with one as end with one."""
    begin = len(re.findall(rf"(?m)(?:^|{re.escape(delimiter)} ?)'", sample))
    end = len(re.findall(rf"(?m)' ?(?:{re.escape(delimiter)}|$)", sample))
    return "'" if begin == end > 1 and '"' not in sample else '"'


def _csv(text: str, delimiter: str, quote: str) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quotechar=quote, skipinitialspace=True)
