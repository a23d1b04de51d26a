"""HTML and XML -> readable text.

Rule: streams. No tree is built of the tags, so that neither their depth nor their number matters; what the parser hears
is gathered as it comes and tidied a piece of the file at a time.

While they are gathered, breaks are marked by control characters, which no markup keeps: blanks then can be collapsed
over a whole piece at once, which takes a fifth of the time of doing it for each text between two tags.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from engine.ports import StageFailed
from engine.reasons import Reason
from engine.workers.reading import Budget, line, tidy

#: Characters that the parser is given at a time; after each, what it heard is tidied.
_FEED_CHARS: Final = 1 << 18
#: A comment of a web page; libxml2 takes 10 million bytes.
_COMMENT_CHARS: Final = 2_000_000
#: A row of a table with more text than this lays out a page: its cells are columns of paragraphs, not fields.
_ROW_CHARS: Final = 2_000

#: Ends of lines and of paragraphs; in preformatted text, blanks and ends of lines that stay as they are.
_LINE, _PARAGRAPH, _BLANK, _NEWLINE = "\x01", "\x02", "\x03", "\x04"
_BREAKS: Final = (_LINE, _PARAGRAPH)
_CELL: Final = " | "
_BULLET: Final = "- "
_MARKS: Final = bytes((*range(0x09), *range(0x0E, 0x1C)))
_KEPT: Final = str.maketrans({" ": _BLANK, "\t": _BLANK, "\n": _NEWLINE})

_NOT_SHOWN = re.compile(r"(?:^|[;\s])display\s*:\s*none\b", re.IGNORECASE)
#: What browsers do not show: code, what stands in for what they can show themselves, choices that are not made, the
#: formula behind a formula, and what a drawing says about itself.
_HIDDEN: Final = frozenset(
    {
        *("script", "style", "noscript", "template", "object", "iframe", "select", "datalist", "audio", "video"),
        *("canvas", "noframes", "noembed", "rp", "annotation", "annotation-xml", "desc", "metadata", "defs"),
    }
)
#: The same of a drawing that is a file of its own, whose title and description are all that tells of it.
_BEHIND_DRAWINGS: Final = frozenset({"style", "script", "metadata"})
#: The page and its title; and the elements without an end that the parser does not know to have none.
_NEVER_UNSEEN: Final = frozenset({"html", "body", "title", "area", "base", "embed", "param", "source", "track", "wbr"})
#: Kinds of <input> whose value is written on them.
_WRITTEN_INPUTS: Final = frozenset({"", "text", "search", "submit", "button", "reset", "email", "url", "tel", "number"})
_PARAGRAPHS: Final = frozenset(
    {"p", "h1", "h2", "h3", "h4", "h5", "h6", "table", "ul", "ol", "dl", "blockquote", "pre"},
)
_LINES: Final = frozenset(
    {
        *("address", "article", "aside", "body", "caption", "center", "dd", "details", "dialog", "div", "dt"),
        *("fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "html", "legend", "li", "main", "nav"),
        *("section", "summary", "tbody", "tfoot", "thead", "title", "tr", "text", "foreignobject"),
    }
)
_ROWS: Final = frozenset({"tr", "table"})
#: What stands in a frame of its own within a line.
_BOXES: Final = frozenset({"button", "textarea"})
#: Elements whose beginning or end is more than words; of all others nothing is done.
_MEANT: Final = frozenset(
    {*_HIDDEN, *_PARAGRAPHS, *_LINES, "td", "th", "br", "img", "input", *_BOXES, "svg", "title", "a"}
)

Report = Callable[[int, int], None]


def html_to_text(markup: str, budget: Budget, report: Report) -> tuple[str, str]:
    """(title, text) of a web page or a mail body: no scripts, lines where a browser would break them.

    report: told after every piece, as (characters done, characters in all).
    """
    target = _Page(budget.left)
    markup = _without_long_comments(markup)
    complaint = _feed("HTMLParser", markup, target, report, encoding="utf-8")
    text = target.text()
    if complaint and not text.strip():
        # The parser gave up: deeper or stranger than it allows. The words are still there between the tags.
        return "", budget.take(_without_tags(markup))
    if target.full:
        budget.cut = True
    return line(target.title(), 500), budget.take(text)


def xml_to_text(markup: str, budget: Budget, report: Report, *, drawing: bool = False) -> str:
    """The words of any XML, an element's on a line. What is not well-formed is read as far as it goes.

    drawing: it is SVG, which has elements that are not shown.
    Raises StageFailed(BOMB) where entities multiply.
    """
    target = _Drawing(budget.left) if drawing else _Words(budget.left)
    if "<!ENTITY" in markup:
        # Abbreviations that may multiply without end. Behind the last ">" none is whole, and each would be looked for.
        end = markup.rfind(">") + 1
        markup = re.sub(r"<!ENTITY[^>]*>", "", markup[:end]) + markup[end:]
    start = re.sub(r"\A\ufeff?\s*<\?xml[^>]*\?>", "", markup[:1000])
    complaint = _feed("XMLParser", start + markup[1000:], target, report, recover=True, resolve_entities=False)
    if re.search("entity|amplification", complaint):
        raise StageFailed(Reason.BOMB, f"XML whose entities multiply: {complaint}")
    text = target.text()
    if not text.strip() and (complaint or not drawing):
        text = _without_tags(markup)
    if target.full:
        budget.cut = True
    return budget.take(text)


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


def _feed(kind: str, markup: str, target: _Words, report: Report, **options: Any) -> str:
    """Feed piece by piece until the end or until the target is full. Returns what the parser complained of."""
    from lxml import etree  # 15 ms, and the texts without tags are many

    parser = getattr(etree, kind)(target=target, huge_tree=False, no_network=True, **options)
    complaint = ""
    try:
        for at in range(0, len(markup), _FEED_CHARS):
            parser.feed(markup[at : at + _FEED_CHARS].encode("utf-8", "replace").translate(None, _MARKS))
            target.settle()
            report(min(at + _FEED_CHARS, len(markup)), len(markup))
            if target.full:
                break
        parser.close()
    except (etree.LxmlError, AssertionError, ValueError) as error:
        complaint = str(error) or type(error).__name__
    return complaint


def _collapsed(text: str) -> str:
    """Every run of blanks as one; without an expression, which takes five times as long."""
    flat = " ".join(text.split())
    return f"{' ' * text[:1].isspace()}{flat}{' ' * (text[-1:].isspace() and flat != '')}"


class _Words:
    """A parser's target that keeps words: the text of each element on lines of its own, until it is full."""

    def __init__(self, limit_chars: int) -> None:
        self._left = limit_chars
        self._settled: list[str] = []
        self._pieces: list[str] = []
        self.full = False

    def text(self) -> str:
        """What was kept, tidied."""
        self.settle()
        text = "".join((*self._settled, *self._pieces))
        if "  " in text:  # where a piece of the file ended
            text = _collapsed(text)
        text = text.replace(_PARAGRAPH, "\n\n").replace(_LINE, "\n")
        text = text.replace(" \n", "\n").replace("\n ", "\n").strip(" \n")
        if "\n\n\n" in text:
            text = re.sub(r"\n{3,}", "\n\n", text)
        if _BLANK in text or _NEWLINE in text:
            text = tidy(text.replace(_BLANK, " ").replace(_NEWLINE, "\n"))
        return text

    def settle(self) -> None:
        """Collapse the blanks of what was gathered, and count it. The last break stays open: others may follow it."""
        open_break = [self._pieces.pop()] if self._pieces and self._pieces[-1] in _BREAKS else []
        settled = _collapsed("".join(self._pieces))
        self._pieces = open_break
        if settled:
            self._settled.append(settled)
            self._left -= len(settled)
            self.full = self._left < 0

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._break(_LINE)

    def end(self, tag: str) -> None:
        self._break(_LINE)

    def data(self, data: str) -> None:
        self._pieces.append(data)

    def comment(self, text: str) -> None:
        """Comments are not read."""

    def pi(self, target: str, data: str | None) -> None:
        """Nor are processing instructions."""

    def close(self) -> None:
        """Nothing is left to do."""

    def _break(self, kind: str) -> None:
        """More than an empty line is none, and blanks at the end of a line are none: they take no room."""
        pieces = self._pieces
        while pieces and pieces[-1].isspace():
            pieces.pop()
        if not pieces or pieces[-1] not in _BREAKS:
            pieces.append(kind)
        elif kind == _PARAGRAPH:
            pieces[-1] = kind


class _Drawing(_Words):
    """The same for SVG: what it looks like, does, and was made with is not what it says."""

    def __init__(self, limit_chars: int) -> None:
        super().__init__(limit_chars)
        self._hidden = 0

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self._hidden += tag.rpartition("}")[2] in _BEHIND_DRAWINGS
        super().start(tag, attributes)

    def end(self, tag: str) -> None:
        self._hidden -= tag.rpartition("}")[2] in _BEHIND_DRAWINGS
        super().end(tag)

    def data(self, data: str) -> None:
        if not self._hidden:
            super().data(data)


class _Page(_Words):
    """The same for HTML: knows which tags break lines, which hide their content and which make tables."""

    def __init__(self, limit_chars: int) -> None:
        super().__init__(limit_chars)
        self._hidden = 0
        self._unseen: tuple[str, int] | None = None  # the tag of what is not shown, and how many of it are open
        self._pre = 0
        self._drawing = 0
        self._title: list[str] = []
        self._in_title = False
        self._cells = 0
        self._row = 0  # where the row that is open begins among the pieces
        self._linked = ""  # where the last link led
        self._link_end = -1  # and where it ended among the pieces

    def title(self) -> str:
        """The page's title, "" where it has none."""
        return "".join(self._title)

    def settle(self) -> None:
        at_link = self._link_end == len(self._pieces)
        super().settle()
        self._row = 0
        self._link_end = len(self._pieces) if at_link else -1

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if self._unseen is not None:
            if tag == self._unseen[0]:
                self._unseen = (tag, self._unseen[1] + 1)
        elif attributes and ("style" in attributes or "hidden" in attributes) and _is_unseen(tag, attributes):
            self._unseen = (tag, 1)
        elif tag in _MEANT:
            self._begin(tag, attributes)

    def _begin(self, tag: str, attributes: Mapping[str, str]) -> None:
        if tag == "a":
            self._begin_link(attributes.get("href") or "")
        elif tag in ("td", "th"):
            self._begin_cell()
        elif tag in _PARAGRAPHS or tag in _LINES:
            if tag == "title":
                self._begin_title()
                return
            self._pre += tag == "pre"
            if tag in _ROWS:
                self._end_row()
            if not self._is_at_bullet():  # its first paragraph stands beside it
                self._break(_PARAGRAPH if tag in _PARAGRAPHS else _LINE)
                if tag == "li":
                    self.data(_BULLET)
        elif tag == "br":
            ended = self._pieces and self._pieces[-1] in _BREAKS
            self._break(_PARAGRAPH if ended and not self._hidden else _LINE)
        elif tag in _HIDDEN:
            self._hidden += 1
        elif tag == "img":
            self.data(f" {attributes.get('alt') or ''} ")
        elif tag == "input":
            written = (attributes.get("type") or "").lower() in _WRITTEN_INPUTS
            self.data(f" {attributes.get('value') or attributes.get('placeholder') or ''} " if written else " ")
        elif tag in _BOXES:
            self.data(" ")
        elif tag == "svg":
            self._drawing += 1

    def end(self, tag: str) -> None:
        if self._unseen is not None:
            if tag == self._unseen[0]:
                self._unseen = (tag, self._unseen[1] - 1) if self._unseen[1] > 1 else None
        elif tag not in _MEANT:
            return
        elif tag == "a":
            self._link_end = len(self._pieces)
        elif tag in _BOXES:
            self.data(" ")
        elif tag in _HIDDEN:
            self._hidden = max(0, self._hidden - 1)
        elif tag == "title":
            self._end_title()
        elif tag == "svg":
            self._drawing = max(0, self._drawing - 1)
        elif tag in _PARAGRAPHS or tag in _LINES:
            self._pre -= tag == "pre"
            if tag in _ROWS:
                self._end_row()
            self._break(_PARAGRAPH if tag in _PARAGRAPHS else _LINE)

    def data(self, data: str) -> None:
        if self._hidden or self._unseen is not None:
            return
        if self._in_title:
            if len(self._title) < 100:
                self._title.append(data)
        elif self._pre > 0:
            self._pieces.append(data.translate(_KEPT))
        else:
            self._pieces.append(data)

    def _begin_link(self, target: str) -> None:
        """Links side by side are entries of a menu, which only their style keeps apart; but editors break one link
        into several."""
        if target != self._linked and self._link_end == len(self._pieces) and not self._pre:
            self.data(" ")
        self._linked = target

    def _begin_title(self) -> None:
        """Of the page; a drawing's own is shown on no page."""
        if self._drawing:
            self._hidden += 1
        else:
            self._in_title = not self._title

    def _end_title(self) -> None:
        if self._drawing:
            self._hidden = max(0, self._hidden - 1)
        self._in_title = False

    def _is_at_bullet(self) -> bool:
        """Blanks behind a bullet are none: looked at once, they go."""
        while self._pieces and self._pieces[-1].isspace():
            self._pieces.pop()
        return bool(self._pieces) and self._pieces[-1] == _BULLET

    def _begin_cell(self) -> None:
        self._cells += 1
        pieces = self._pieces
        if self._cells == 1:
            self._row = len(pieces)
            return
        while pieces and (pieces[-1].isspace() or pieces[-1] in _BREAKS):
            pieces.pop()
        pieces.append(_CELL)

    def _end_row(self) -> None:
        """What breaks lines within the cells of a row does not part it; where the row lays out a page, it does."""
        if self._cells > 1 and sum(map(len, self._pieces[self._row :])) <= _ROW_CHARS:
            self._pieces[self._row :] = [" " if piece in _BREAKS else piece for piece in self._pieces[self._row :]]
        self._cells = 0


def _is_unseen(tag: str, attributes: Mapping[str, str]) -> bool:
    """Whether no browser shows the element. The page as a whole is taken for shown: scripts uncover it."""
    if "hidden" in attributes:
        hidden = attributes["hidden"] or ""
        return tag not in _NEVER_UNSEEN and hidden.strip().lower() != "until-found"
    style = attributes.get("style")
    return bool(style) and tag not in _NEVER_UNSEEN and _NOT_SHOWN.search(style or "") is not None
