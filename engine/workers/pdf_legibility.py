"""Whether the text layer of a page says what the page shows, and whether what is painted there are letters.

Rule: pure, and slow to condemn: text that is taken for garbled goes to OCR, which reads a good page worse than its own
layer. Tables of numbers, code, lists of names and scripts that nothing is known of are text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from enum import Enum
from itertools import islice
from typing import Final

#: Measured on 220 labelled pages, all of them decided rightly: where images cover the page, a layer is no text when it
#: is hardly alphanumeric (stamps, noise), or in glyphs without meaning.
_ALPHANUMERIC: Final = 0.5
_GARBLED: Final = 0.1
#: Where so many of the characters have no meaning, OCR is all there is, whatever the page is painted with. Icons and
#: the signs of formulas are fewer, but for pages that hold little else.
_HOPELESS, _HOPELESS_OF_FEW = 0.3, 0.5
_FEW_SIGNS: Final = 200
#: Characters from the middle of a page that are looked at: the share of a letter is then known to three percent.
_SAMPLE_CHARS: Final = 2_000
#: The nine letters that are most frequent in Latin languages together make 59 % (Polish) to 75 % (Italian) of the
#: letters of their 3,000 most frequent words (wordfreq 3.1, 28 languages; 49 % in Vietnamese, accents aside). With the
#: letters of English, German and French exchanged by chance it is 35 % in the middle, below 48 % in nine of ten cases.
_COMMON_LATIN: Final = b"eainrtoslEAINRTOSL"
#: The same for Cyrillic (Ukrainian 56, Russian 65, Macedonian 70 %; by chance 28, nine of ten below 40 %), and Greek
#: (74 %).
_COMMON_CYRILLIC: Final = re.compile("[оаеинтсрвіОАЕИНТСРВІ]")
_COMMON_GREEK: Final = re.compile("[αοιετσνηυςάόίέήύΑΟΙΕΤΣΝΗΥ]")
_CYRILLIC = re.compile("[\u0400-\u04ff]")
_GREEK = re.compile("[\u0370-\u03ff]")
_SURE, _DOUBTFUL, _STRANGE = 0.55, 0.58, 0.45
_STRANGE_ELSEWHERE: Final = 0.42
#: Letters such as "ïðî": in the languages that have most of them (Icelandic) 14 % of the letters are accented, in texts
#: whose Greek or Cyrillic is taken for Latin-1 nearly all.
_ACCENTED = re.compile("[\u00c0-\u00ff]")
_MOST_ACCENTED: Final = 0.5
#: Letters that a judgement needs; two lines of print.
_LEAST_LETTERS: Final = 150
#: Words that a judgement needs, and function words among them that refute it: in prose of these languages a tenth and
#: more of the words of three letters and more are such.
_LEAST_WORDS: Final = 25
_FUNCTION_SHARE: Final = 0.04
_FUNCTION_WORDS: Final = frozenset(
    word
    for words in (
        "the and for that with this are was not der die das und ist nicht den mit von les des est que pour dans une",
        "los las del por con para che non della per sono het een van niet voor dat uma com não nie się jest jak och",
        "att det som til ikke ei että hogy egy nem pentru care este bir için những của các không dan yang untuk",
    )
    for word in words.split()
)
#: Of words of four letters and more those without a vowel are few ("prst"): below a tenth, abbreviations among them.
_VOWELLESS: Final = 0.15
#: Words of letters only, with what stands around words; codes, numbers, addresses and identifiers are none.
_BARE = re.compile(r"(?<!\S)[(\"'“„«\[]?([^\W\d_]{3,20})[)\"'”“»\],.;:!?]*(?!\S)")
_NO_VOWEL = re.compile("[bcdfghjklmnpqrstvwxz]{4,}", re.IGNORECASE)
#: Different signs that a text of nothing but signs has, when they stand for letters; rules, dots and tables have few.
_MOST_SIGNS: Final = 0.5
_KINDS_OF_SIGNS: Final = 12
_SAME_SIGN: Final = 0.3

_MEANINGLESS = re.compile("[\x00-\x08\x0e-\x1f\ufffd\ue000-\uf8ff\U000f0000-\U0010fffd]")
_LETTERS: Final = bytes(code for code in range(256) if chr(code).isascii() and chr(code).isalpha())
_NOT_LETTERS: Final = bytes(set(range(256)) - set(_LETTERS))
#: Vowel signs and points of scripts from Hebrew to Khmer, which Python does not count as letters.
_MARK = re.compile(r"[^\w\s\u0000-\u0590\u2000-\uffff]|[\u0300-\u036f]")

#: Path boxes that are looked at. A page of outlined print has 3,000, a map a hundred times as many.
_MOST_BOXES: Final = 20_000
#: Outlined letters: so many points high, at most so many times as wide, so many in a row.
_LETTER_POINTS, _LETTER_WIDTH, _LETTERS_IN_ROW = (3.0, 60.0), 2.0, 5
#: From one letter to the next, in heights: blanks between words included.
_NEXT_LETTER: Final = 1.2
#: Heights of letters in one row differ by x-height and descender.
_SAME_HEIGHT: Final = 2.6
#: A row of equal boxes is a pattern: print of five letters has at least three widths. Letters overlap a little.
_WIDTHS_IN_ROW, _OVERLAP, _NARROWEST, _ROW_POINTS = 3, 0.3, 0.05, 1.0
#: Letters that make a page one of outlined print: a line. Fewer are a word on a drawing.
LEAST_OUTLINED: Final = 40


class Layer(Enum):
    """What a text layer is worth."""

    TEXT = "text"
    #: Not enough to tell, or hardly words: what the page is painted with decides.
    DOUBTFUL = "doubtful"
    #: It does not say what the page shows.
    GARBLED = "garbled"


def signs_in(text: str) -> int:
    """Characters other than blanks."""
    return len(text) - text.count(" ") - text.count("\n") - text.count("\t")


def layer_of(text: str) -> Layer:
    """What a layer of some length is worth; short ones are never more than doubtful to the caller."""
    start = max(0, (len(text) - _SAMPLE_CHARS) // 2)
    sample = text[start : start + _SAMPLE_CHARS]
    letters = sample.encode("ascii", "ignore").translate(None, _NOT_LETTERS)
    common = len(letters) - len(letters.translate(None, _COMMON_LATIN))
    # What nearly all pages are.
    if common > _SURE * len(letters) and 2 * len(letters) > len(sample):
        return Layer.TEXT
    signs = "".join(sample.split())
    if not signs:
        return Layer.DOUBTFUL
    meaningless = len(_MEANINGLESS.findall(signs))
    if meaningless > (_HOPELESS if len(signs) >= _FEW_SIGNS else _HOPELESS_OF_FEW) * len(signs):
        return Layer.GARBLED
    if _has_strange_letters(sample):
        return Layer.GARBLED
    # Marks count as the letters that they stand upon: in Hindi every third character is one.
    alphanumeric = sum(map(str.isalnum, signs)) + len(_MARK.findall(signs))
    if alphanumeric < _ALPHANUMERIC * len(signs):
        return Layer.GARBLED if _is_letters_as_signs(signs) else Layer.DOUBTFUL
    if meaningless > _GARBLED * len(signs):
        return Layer.DOUBTFUL
    return Layer.TEXT


def _has_strange_letters(sample: str) -> bool:
    """Whether there are words, in a script that is known, whose letters are not those that its languages use."""
    words = [match.casefold() for match in _BARE.findall(sample)]
    if len(words) < _LEAST_WORDS:
        return False
    joined = "".join(words)
    if len(joined) < _LEAST_LETTERS:
        return False
    if sum(word in _FUNCTION_WORDS for word in words) >= _FUNCTION_SHARE * len(words):
        return False
    if len(_ACCENTED.findall(joined)) > _MOST_ACCENTED * len(joined):
        return True
    for script, common in ((_CYRILLIC, _COMMON_CYRILLIC), (_GREEK, _COMMON_GREEK)):
        letters = len(script.findall(joined))
        if 2 * letters > len(joined):
            return len(common.findall(joined)) < _STRANGE_ELSEWHERE * letters
    latin = joined.encode("ascii", "ignore")
    if 2 * len(latin) <= len(joined):
        return False
    common_share = 1 - len(latin.translate(None, _COMMON_LATIN)) / len(latin)
    if common_share < _STRANGE:
        return True
    long = [word for word in words if len(word) > 3]
    vowelless = sum(_NO_VOWEL.fullmatch(word) is not None for word in long)
    return common_share < _DOUBTFUL and vowelless > _VOWELLESS * len(long)


def _is_letters_as_signs(signs: str) -> bool:
    """Whether signs stand where letters should: of many kinds, hardly a letter or a digit among them."""
    if len(signs) < _LEAST_LETTERS:
        return False
    others = Counter(sign for sign in signs if sign.isascii() and not sign.isalnum())
    total = sum(others.values())
    if total < _MOST_SIGNS * len(signs) or len(others) < _KINDS_OF_SIGNS:
        return False
    return max(others.values()) < _SAME_SIGN * total


# --- outlines --------------------------------------------------------------------------------------------------------

Box = tuple[float, float, float, float]


def count_letters(boxes: Iterable[Box]) -> int:
    """How many of the boxes of filled paths are letters: of one size and close together, in rows.

    Fields of a map lie anywhere, bars of a chart are of one size but apart, ticks of a scale are too.
    """
    low, high = _LETTER_POINTS
    rows: dict[int, list[Box]] = {}
    for box in islice(boxes, _MOST_BOXES):
        left, top, right, bottom = box
        height = bottom - top
        # Letters such as i and l are narrow; rules and ticks are narrower.
        if low <= height <= high and _NARROWEST * height < right - left < _LETTER_WIDTH * height:
            rows.setdefault(round(bottom / _ROW_POINTS), []).append(box)
    return sum(_letters_in(sorted(row)) for row in rows.values() if len(row) >= _LETTERS_IN_ROW)


def _letters_in(row: list[Box]) -> int:
    """Of the boxes that stand on one line, from left to right, those in runs of some length and different widths."""
    found, run = 0, [row[0]]
    for box in [*row[1:], None]:
        last = run[-1]
        if box is not None and _follows(box, last):
            run.append(box)
            continue
        widths = {round(right - left, 1) for left, _, right, _ in run}
        if len(run) >= _LETTERS_IN_ROW and len(widths) >= _WIDTHS_IN_ROW:
            found += len(run)
        if box is not None:
            run = [box]
    return found


def _follows(box: Box, last: Box) -> bool:
    height, before = box[3] - box[1], last[3] - last[1]
    gap = box[0] - last[2]
    if not max(height, before) <= _SAME_HEIGHT * min(height, before):
        return False
    return -_OVERLAP * before <= gap <= _NEXT_LETTER * max(height, before)
