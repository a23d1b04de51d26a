"""Plain text of any encoding, CSV, XML and HTML -> readable text.

Rule: streams. Nothing is kept of a file but the text that the document may have, and no tree is built of its tags,
so that neither depth nor length of a line matters.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from lxml import etree

from engine.document import Document, Page
from engine.ports import StageFailed
from engine.reasons import Reason
from engine.sizes import format_size
from engine.workers import types
from engine.workers.decoding import decode_stream
from engine.workers.reading import Budget, Material, line, tidy

#: Markup read of one file, as a multiple of the text that the document may have: tags take most of a web page.
_MARKUP_FACTOR: Final = 5
_FEED_CHARS: Final = 1 << 18
#: A comment of a web page; libxml2 takes 10 million bytes.
_COMMENT_CHARS: Final = 2_000_000

#: Of a table, to find out what parts its cells, and which share of its rows must have as many of them.
_SAMPLE_CHARS: Final = 8192
_SAME_WIDTH: Final = 0.7

Report = Callable[[int, int], None]

_CHARSET = re.compile(rb"""<meta[^>]{0,200}?charset\s*=\s*["']?([A-Za-z0-9_.:-]{2,40})""", re.IGNORECASE)
_XML_ENCODING = re.compile(rb"""\A\s*<\?xml[^>]{0,100}?encoding\s*=\s*["']([A-Za-z0-9_.:-]{2,40})["']""")

_NOT_SHOWN = re.compile(r"(?:^|[;\s])display\s*:\s*none\b", re.IGNORECASE)
_HIDDEN: Final = frozenset({"script", "style", "noscript", "template", "svg", "object", "iframe", "select", "textarea"})
#: The page and its title; and the elements without an end that the parser does not know to have none.
_NEVER_UNSEEN: Final = frozenset({"html", "body", "title", "area", "base", "embed", "param", "source", "track", "wbr"})
_PARAGRAPHS: Final = frozenset(
    {"p", "h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol", "dl", "blockquote", "pre"},
)
_BLOCKS: Final = _PARAGRAPHS | {
    *("address", "article", "aside", "body", "br", "caption", "center", "dd", "details", "dialog", "div", "dt"),
    *("fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "html", "legend", "li", "main", "nav"),
    *("section", "summary", "tbody", "tfoot", "thead", "title", "tr"),
}


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
        title, text = (html_to_text if material.media_type == types.HTML else _xml_to_text)(found.text, budget, report)
        if found.cut:
            notes.append(f"partial: the markup was cut at {limit} characters")
    elif material.media_type in (types.CSV, types.TSV):
        text = budget.take(_rows(found.text, material))
    else:
        text = budget.take(found.text)
    budget.cut = budget.cut or (found.cut and not markup)
    return material.document(
        title=title,
        pages=[Page(number=0, text=text)],
        notes=[*found.notes(), *notes, *budget.notes(f"the file has {format_size(size)}")],
    )


def html_to_text(markup: str, budget: Budget, report: Report) -> tuple[str, str]:
    """(title, text) of a web page or a mail body: no scripts, lines where a browser would break them.

    report: told after every piece, as (characters done, characters in all).
    """
    target = _Page(budget.left)
    markup = _without_long_comments(markup)
    complaint = _feed(etree.HTMLParser, markup, target, report, encoding="utf-8")
    if complaint and not target.text().strip():
        # The parser gave up: deeper or stranger than it allows. The words are still there between the tags.
        return "", budget.take(_without_tags(markup))
    if target.full:
        budget.cut = True
    return line(target.title(), 500), budget.take(tidy(target.text()))


def _declared(head: bytes) -> str:
    match = _XML_ENCODING.search(head) or _CHARSET.search(head)
    return match.group(1).decode("ascii") if match else ""


def _rows(text: str, material: Material) -> str:
    """The cells of each row joined by " | ". What is no table after all stays as it is."""
    sample = text[:_SAMPLE_CHARS]
    delimiter = _delimiter(sample) or ("\t" if material.media_type == types.TSV else ",")
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


def _xml_to_text(markup: str, budget: Budget, report: Report) -> tuple[str, str]:
    """The words of any XML, an element's on a line. What is not well-formed is read as far as it goes."""
    target = _Words(budget.left)
    if "<!ENTITY" in markup:
        # Abbreviations that may multiply without end. Behind the last ">" none is whole, and each would be looked for.
        end = markup.rfind(">") + 1
        markup = re.sub(r"<!ENTITY[^>]*>", "", markup[:end]) + markup[end:]
    start = re.sub(r"\A\ufeff?\s*<\?xml[^>]*\?>", "", markup[:1000])
    complaint = _feed(etree.XMLParser, start + markup[1000:], target, report, recover=True, resolve_entities=False)
    if re.search("entity|amplification", complaint):
        raise StageFailed(Reason.BOMB, f"XML whose entities multiply: {complaint}")
    text = tidy(target.text())
    if not text.strip():
        text = _without_tags(markup)
    if target.full:
        budget.cut = True
    return "", budget.take(text)


def _without_tags(markup: str) -> str:
    return tidy(re.sub(r"[^\S\n]+", " ", re.sub(r"<[^<>]{0,4000}>", " ", markup)))


def _without_long_comments(markup: str) -> str:
    """Of a comment beyond its own limit the parser makes a mistake and then goes through the same letters again, from
    whatever looks like the next beginning of one: one that never ends would cost the square of its length."""
    begin = markup.find("<!--")
    while begin >= 0:
        end = markup.find("-->", begin + 4)
        if (end if end >= 0 else len(markup)) - begin > _COMMENT_CHARS:
            markup = markup[:begin] + (markup[end + 3 :] if end >= 0 else "")
            end = begin - 3
        elif end < 0:
            break
        begin = markup.find("<!--", end + 3)
    return markup


def _feed(kind: Any, markup: str, target: _Words, report: Report, **options: Any) -> str:
    """Feed piece by piece until the end or until the target is full. Returns what the parser complained of."""
    parser = kind(target=target, huge_tree=False, no_network=True, **options)
    complaint = ""
    try:
        for at in range(0, len(markup), _FEED_CHARS):
            parser.feed(markup[at : at + _FEED_CHARS].encode("utf-8", "replace"))
            report(min(at + _FEED_CHARS, len(markup)), len(markup))
            if target.full:
                break
        parser.close()
    except (etree.LxmlError, AssertionError, ValueError) as error:
        complaint = str(error) or type(error).__name__
    return complaint


class _Words:
    """A parser's target that keeps words: text of elements, a line each, until it is full."""

    def __init__(self, limit_chars: int) -> None:
        self._left = limit_chars
        self._pieces: list[str] = []
        self.full = False

    def text(self) -> str:
        """What was kept."""
        return "".join(self._pieces)

    def keep(self, piece: str) -> None:
        """Add a piece while there is room. One line break more is allowed: blanks are tidied later."""
        if self._left <= 0:
            self.full = True
            return
        self._pieces.append(piece)
        self._left -= len(piece)

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._break()

    def end(self, tag: str) -> None:
        self._break()

    def data(self, data: str) -> None:
        flat = re.sub(r"\s+", " ", data)
        if flat.strip() or (self._pieces and not self._pieces[-1].isspace()):
            self.keep(flat)

    def comment(self, text: str) -> None:
        """Comments are not read."""

    def pi(self, target: str, data: str | None) -> None:
        """Nor are processing instructions."""

    def close(self) -> None:
        """Nothing is left to do."""

    def _break(self) -> None:
        if self._pieces and self._pieces[-1] != "\n":
            self._pieces.append("\n")


def _is_unseen(tag: str, attributes: Mapping[str, str]) -> bool:
    """Whether no browser shows the element. The page as a whole is taken for shown: scripts uncover it."""
    if tag in _NEVER_UNSEEN:
        return False
    hidden = attributes.get("hidden")
    if hidden is not None and hidden.strip().lower() != "until-found":
        return True
    return _NOT_SHOWN.search(attributes.get("style") or "") is not None


class _Page(_Words):
    """The same for HTML: knows which tags break lines, which hide their content and which make tables."""

    def __init__(self, limit_chars: int) -> None:
        super().__init__(limit_chars)
        self._hidden = 0
        self._unseen: tuple[str, int] | None = None  # the tag of what is not shown, and how many of it are open
        self._pre = 0
        self._title: list[str] = []
        self._in_title = False
        self._cells = 0

    def title(self) -> str:
        """The page's title, "" where it has none."""
        return "".join(self._title)

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if self._unseen is not None:
            if tag == self._unseen[0]:
                self._unseen = (tag, self._unseen[1] + 1)
        elif _is_unseen(tag, attributes):
            self._unseen = (tag, 1)
        elif tag in _HIDDEN:
            self._hidden += 1
        elif tag == "title":
            self._in_title = not self._title
        elif tag in ("td", "th"):
            self._cells += 1
            if self._cells > 1:
                self._end_cell()
                self.keep(" | ")
        elif tag == "img" and not self._hidden:
            self.data(f" {attributes.get('alt') or ''} ")
        elif tag in _BLOCKS:
            self._pre += tag == "pre"
            self._leave_row(tag)
            self._line(empty=tag in _PARAGRAPHS)
            if tag == "li":
                self.keep("- ")

    def end(self, tag: str) -> None:
        if self._unseen is not None:
            if tag == self._unseen[0]:
                self._unseen = (tag, self._unseen[1] - 1) if self._unseen[1] > 1 else None
        elif tag in _HIDDEN:
            self._hidden = max(0, self._hidden - 1)
        elif tag == "title":
            self._in_title = False
        elif tag in _BLOCKS:
            self._pre -= tag == "pre"
            self._leave_row(tag)
            self._line(empty=tag in _PARAGRAPHS)

    def data(self, data: str) -> None:
        if self._in_title:
            if len(self._title) < 100:
                self._title.append(data)
        elif self._hidden or self._unseen is not None:
            return
        elif self._pre > 0:
            self.keep(data)
        else:
            flat = re.sub(r"\s+", " ", data)
            fresh = not self._pieces or self._pieces[-1][-1:] in "\n "
            self.keep(flat.lstrip() if fresh else flat)

    def _end_cell(self) -> None:
        while self._pieces and self._pieces[-1].isspace() and "\n" not in self._pieces[-1]:
            self._pieces.pop()

    def _leave_row(self, tag: str) -> None:
        if tag in ("tr", "table"):
            self._cells = 0

    def _line(self, *, empty: bool) -> None:
        end = " " if self._cells else "\n\n" if empty else "\n"  # a cell's own paragraphs stay on the row's line
        last = self._pieces[-1] if self._pieces else end
        if end != " " and last in ("\n", "\n\n"):
            self._pieces[-1:] = [max(last, end)]  # more than an empty line is none: a million breaks take no room
        elif last != end:
            self._pieces.append(end)
