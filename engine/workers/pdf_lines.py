"""The lines that MuPDF finds on a page, and where they stand -> the text of the page.

Rule: words are never lost or made up. Pure: values in, text out. The order of the file is kept, which is that of
reading wherever a program wrote columns one after the other; what stands side by side becomes the cells of a row.

    name  age          "name\tage"            left   right         "left
    Ann   41     ->    "Ann\t41"              column column   ->    column
                                              goes   follows        goes ..."
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple

#: Between cells. The chunker and the keywords take it for a blank.
CELL: Final = "\t"
#: Lines of print of this length and more, side by side over so many rows, are columns of prose. Columns of a newspaper
#: have 25 to 40 letters in a line; cells of a table are shorter, or stand beside numbers.
_PROSE_CHARS, _PROSE_ROWS = 25, 5
#: Columns that a table may be written in one by one: shorter, and at least so many rows.
_CELL_CHARS, _CELL_ROWS = 25, 3
#: Points by which a line is printed again beside itself, to make it bold or give it a shadow.
_OVERPRINT: Final = 2
#: Lines of the same text and height that are looked at for that: one word ten thousand times takes no square of it.
_MOST_EQUAL: Final = 100
#: Signs of a line that is spaced out, letter by letter, and how many of them are letters: more than in rows of numbers.
_SPACED_SIGNS, _SPACED_LETTERS = 5, 0.6
_GAPS = re.compile(r"\s{2,}")
#: What a line ends with where a word is broken: hyphen-minus, hyphen, soft hyphen.
_HYPHENS: Final = frozenset("-\u2010\u00ad")
_SOFT: Final = "\u00ad"
#: Behind "pre-" at a line's end these are words of their own: "pre- and post-war", "Vor- und Nachteile".
_SUSPENDED: Final = frozenset(("and", "or", "und", "oder", "bzw.", "sowie", "et", "ou", "y", "o", "e", "en", "of"))
#: Words that keep their hyphen before nearly every other.
_COMPOUNDING: Final = frozenset(("well", "self", "ci"))
#: Where a program breaks words, more lines than one in forty of a page end with a hyphen; where it does not, those that
#: do are compounds.
_LINES_OF_A_HYPHEN: Final = 40
#: Of one page, and text of it that is searched for each of them: several times what close print has.
_MOST_BROKEN, _AROUND_CHARS = 500, 40_000
#: Letters of a word that are looked at; the longest of any dictionary have some 80.
_WORD_CHARS: Final = 80


class Line(NamedTuple):
    """One line as MuPDF makes them: characters on one baseline without a wide gap; in points from the upper left."""

    text: str
    left: int
    top: int
    right: int
    bottom: int

    @property
    def is_sideways(self) -> bool:
        """It runs up or down the page."""
        return len(self.text) > 3 and self.bottom - self.top > 2 * (self.right - self.left)

    def is_beside(self, other: Line) -> bool:
        """Whether both stand on the same height, and neither over the other; lines that run up the page never do."""
        if self.is_sideways or other.is_sideways:
            return False
        common = min(self.bottom, other.bottom) - max(self.top, other.top)
        if common <= 0 or 2 * common < min(self.bottom - self.top, other.bottom - other.top):
            return False
        return self.left >= other.right or other.left >= self.right


def text_of(blocks: Sequence[Mapping[str, Any]], before: str = "") -> str:
    """The text of a page: a line for each row, words that were broken at line ends whole again.

    blocks: as `fz_print_stext_page_as_json` writes them, boxes in whole points
    before: text of the pages before it, which may hold a word that is broken here
    Raises KeyError, TypeError for blocks of any other form.
    """
    texts: list[str] = []
    boxes: list[Mapping[str, int]] = []
    beside, middle = False, -sys.maxsize
    for block in blocks:
        for line in block.get("lines", ()):
            text = line["text"].rstrip()
            if text:
                if len(text) <= 2 * text.count(" ") + 1 >= 2 * _SPACED_SIGNS - 1:
                    text = _closed_up(text)
                box = line["bbox"]
                top = box["y"]
                # All that most lines cost: one that begins above the middle of the line before it may stand beside it.
                if top < middle:
                    beside = True
                middle = top + box["h"] // 2
                texts.append(text)
                boxes.append(box)
    if beside:
        texts = _without_sides(_printed_once([_line(text, box) for text, box in zip(texts, boxes, strict=True)]))
    return _with_whole_words(texts, before)


def _closed_up(text: str) -> str:
    """A line whose letters are set apart, as in headings, as words: "S u m m e r  n i g h t". Any other as it is."""
    words = _GAPS.split(text.strip())
    if any(len(word) % 2 == 0 or word[1::2].strip() or " " in word[::2] for word in words):
        return text
    closed = [word[::2] for word in words]
    signs = "".join(closed)
    is_print = len(signs) >= _SPACED_SIGNS and sum(map(str.isalpha, signs)) >= _SPACED_LETTERS * len(signs)
    return " ".join(closed) if is_print else text


def _line(text: str, box: Mapping[str, int]) -> Line:
    left, top = box["x"], box["y"]
    return Line(text, left, top, left + box["w"], top + box["h"])


def _printed_once(lines: list[Line]) -> list[Line]:
    """Without the lines that say what stands already there."""
    often = {text for text, count in Counter(line.text for line in lines).items() if count > 1}
    if not often:
        return lines
    seen: dict[tuple[str, int], list[int]] = {}  # where lines of one text and height begin
    kept = []
    for line in lines:
        if line.text in often:
            if _is_printed(line, seen):
                continue
            seen.setdefault((line.text, line.top), []).append(line.left)
        kept.append(line)
    return kept


def _is_printed(line: Line, seen: Mapping[tuple[str, int], Sequence[int]]) -> bool:
    for top in range(line.top - _OVERPRINT, line.top + _OVERPRINT + 1):
        for left in seen.get((line.text, top), ())[-_MOST_EQUAL:]:
            if abs(line.left - left) <= _OVERPRINT:
                return True
    return False


# --- rows ------------------------------------------------------------------------------------------------------------


def _without_sides(lines: Sequence[Line]) -> list[str]:
    """Texts of lines of which some may stand side by side, row by row or column by column."""
    rows = _rows(lines)
    if len(rows) < len(lines):
        return [text for row in _without_columns(rows) for text in row]
    if len(lines) >= 2 * _CELL_ROWS and sum(len(line.text) for line in lines) < _CELL_CHARS * len(lines):
        return list(_with_columns_as_rows(lines))
    return [line.text for line in lines]


def _rows(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines that follow one another and stand side by side, together."""
    rows: list[list[Line]] = []
    last = None
    for line in lines:
        if last is not None and line.top < last.bottom and line.is_beside(last) and _fits(line, rows[-1]):
            rows[-1].append(line)
        else:
            rows.append([line])
        last = line
    return rows


def _fits(line: Line, row: list[Line]) -> bool:
    """Whether it goes on in the direction of the row: a row does not turn back."""
    return len(row) < 2 or (line.left >= row[-1].right) == (row[1].left >= row[0].right)


def _without_columns(rows: list[list[Line]]) -> Iterator[list[str]]:
    """Texts of rows, cells parted by tabs. Where many rows have the same number of long cells, column by column."""
    for cells, group in groupby(rows, key=len):
        members = list(group)
        count = sum(len(line.text) for row in members for line in row)
        if 2 <= cells <= 3 and len(members) >= _PROSE_ROWS and count >= _PROSE_CHARS * cells * len(members):
            for column in zip(*members, strict=True):
                yield [line.text for line in column]
        else:
            yield [CELL.join(line.text for line in row) for row in members]


def _with_columns_as_rows(lines: Sequence[Line]) -> Iterator[str]:
    """Short lines, of which some may be the columns of a table, written one after the other."""
    columns = _columns(lines)
    at = 0
    while at < len(columns):
        first, end = columns[at], at + 1
        if len(first) >= _CELL_ROWS:
            while end < len(columns) and _are_beside(columns[end - 1], columns[end]):
                end += 1
        for row in zip(*columns[at:end], strict=True):
            yield CELL.join(line.text for line in row)
        at = end


def _columns(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines that follow one another and stand one under the other, together."""
    columns: list[list[Line]] = []
    for line in lines:
        last = columns[-1][-1] if columns else None
        if last is not None and line.top >= last.bottom - 1 and line.left < last.right and last.left < line.right:
            columns[-1].append(line)
        else:
            columns.append([line])
    return columns


def _are_beside(one: list[Line], other: list[Line]) -> bool:
    return len(one) == len(other) and all(a.is_beside(b) for a, b in zip(one, other, strict=True))


# --- hyphens ---------------------------------------------------------------------------------------------------------


def _with_whole_words(texts: list[str], before: str) -> str:
    """The texts as lines. Of a word that was broken the rest stands on the line where it began."""
    broken = [index for index, text in enumerate(texts[:-1]) if text[-1] in _HYPHENS][:_MOST_BROKEN]
    plain = "\n".join(texts)
    if broken:
        around = f"{before}\n{plain[:_AROUND_CHARS]}"
        seldom = len(broken) * _LINES_OF_A_HYPHEN <= len(texts)
        for index in reversed(broken):  # a word may go on over several lines: its end is joined before its middle
            joined = _joined(texts[index], texts[index + 1], around, seldom)
            if joined is not None:
                texts[index], texts[index + 1] = joined
        plain = "\n".join(filter(None, texts))
    return plain.replace(_SOFT, "") if _SOFT in plain else plain


def _joined(line: str, following: str, around: str, seldom: bool) -> tuple[str, str] | None:
    """(line, what is left of the one that follows), or None where the hyphen does not part a word."""
    head, hyphen = line[-_WORD_CHARS - 1 : -1].rpartition(" ")[2], line[-1]
    tail, _, rest = following.partition(" ")
    if CELL in head or CELL in tail:
        return None
    if not head or not head[-1].isalnum() or not tail[0].isalnum() or len(tail) > _WORD_CHARS:
        return None
    if tail in _SUSPENDED and head + tail not in around:
        return None
    if not rest and tail.isdecimal() and head[-1].isalpha() and f"{head}-{tail}" not in around:
        return None  # a page's number, below a word that goes on overleaf
    if hyphen != _SOFT and _keeps_hyphen(head, tail, around, seldom):
        return f"{line[:-1]}-{tail}", rest
    return f"{line[:-1]}{tail}", rest


def _keeps_hyphen(head: str, tail: str, around: str, seldom: bool) -> bool:
    """Whether the word is a compound of the two: "well-known", "Jean-Paul", "2019-2020", "state-of-the-art".

    What stands elsewhere without a break decides. Without a witness it is a broken word, as nearly all of them are;
    on a page that breaks words seldom it is a compound if both are words of that page.
    """
    if not (head[-1].isalpha() and tail[0].isalpha()):
        return True
    word = tail.rstrip(".,;:!?)]}\"'”’»")
    if head + word in around:
        return False
    if not tail[0].islower() or len(head) == 1:
        return True
    # An elided article opens the second half of a compound: "main-d'oeuvre".
    if "-" in head or "-" in word or word[1:2] in ("'", "’") or head.lower() in _COMPOUNDING:
        return True
    return f"{head}-{word}" in around or (seldom and _is_word(head, around) and _is_word(word, around))


def _is_word(word: str, around: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", around) is not None
