"""Whether the text layer of a page says what the page shows, and whether what is painted there are letters.

Rule: pure, and slow to condemn: text that is taken for garbled goes to OCR, which reads a good page worse than its own
layer. Tables of numbers, code, lists of names and scripts that nothing is known of are text.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from enum import Enum
from itertools import islice, pairwise
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
#: In the words of a language consonants and vowels take turns, and a few letters are most of them. The share of
#: neighbours of which one is a vowel, and that of the nine letters that are most frequent in Latin languages, are
#: together 1.26 and more on pages of 200 words of 28 languages, frequent words or rare ones (wordfreq 3.1; Polish 1.26,
#: German 1.30, English 1.32). With the letters exchanged by chance, or for those that come first in the alphabet, it is
#: 0.7 in the middle, and below 1.15 on 99 of 100 pages of English, German, French, Polish, Czech and Finnish.
_WORDS_AT_LEAST: Final = 1.15
#: The nine letters alone are 55 to 80 % there, at most 59 % in garbled English.
_SURE: Final = 0.6
_COMMON_LATIN: Final = b"eainrtoslEAINRTOSL"
#: (a letter of the script, its vowels, its most frequent letters); accents aside.
_SCRIPTS: Final = (
    (re.compile("[a-z]"), frozenset("aeiouy"), frozenset("eainrtosl")),
    (re.compile("[\u0430-\u045f]"), frozenset("аеиоуыэюяі"), frozenset("оаеинтсрв")),
    (re.compile("[\u03b1-\u03c9]"), frozenset("αεηιουω"), frozenset("αοιετσνης")),
)
#: Where words have signs for letters, the nine letters are fewer than that.
_STRANGE: Final = 0.45
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
#: Words of letters only, with what stands around words; codes, numbers, addresses and identifiers are none.
_BARE = re.compile(r"(?<!\S)[(\"'“„«\[]?([^\W\d_]{3,20})[)\"'”“»\],.;:!?]*(?!\S)")
#: Of natural words of three letters and more the two most frequent lengths have two fifths.
_SAME_LENGTHS: Final = 0.9
#: Longer ones are data: base64 has lines of 76.
_TOKEN_CHARS: Final = 25
#: A sign that no language writes within a word, beside a letter on both sides or before one.
_SIGN_IN_WORD = re.compile(r"[^\W_][!-&(-,:-@\[-^`{-~]+[^\W_]")
#: Different signs that a text of nothing but signs has, when they stand for letters; rules, dots and tables have few.
_MOST_SIGNS: Final = 0.5
_KINDS_OF_SIGNS: Final = 12
_SAME_SIGN: Final = 0.3
#: Of the signs in code, brackets are at least so many.
_BRACKETS: Final = 0.1

_MEANINGLESS = re.compile("[\x00-\x08\x0e-\x1f\ufffd\ue000-\uf8ff\U000f0000-\U0010fffd]")
_ACCENT = re.compile("[\u0300-\u036f]")
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
_WIDTHS_IN_ROW, _OVERLAP, _NARROWEST = 3, 0.3, 0.05
#: Letters that make a page one of outlined print: a line. Fewer are a word on a drawing.
_LEAST_OUTLINED: Final = 40
#: Of the boxes of that size nine of ten are letters on outlined pages, at most one of ten where boxes lie at random.
_OUTLINED_SHARE: Final = 0.3


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
    if _has_strange_letters(sample) or _has_signs_in_words(sample):
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
    if len(joined) < _LEAST_LETTERS or _are_codes(words):
        return False
    if sum(word in _FUNCTION_WORDS for word in words) >= _FUNCTION_SHARE * len(words):
        return False
    if len(_ACCENTED.findall(joined)) > _MOST_ACCENTED * len(joined):
        return True
    folded = _ACCENT.sub("", unicodedata.normalize("NFD", " ".join(words)))
    for script, vowels, common in _SCRIPTS:
        letters = len(script.findall(folded))
        if 2 * letters > len(joined):
            frequent = sum(letter in common for letter in folded) / letters
            turns = [(one in vowels) != (other in vowels) for one, other in pairwise(folded) if " " not in (one, other)]
            return frequent + sum(turns) / max(1, len(turns)) < _WORDS_AT_LEAST
    return False


def _are_codes(words: list[str]) -> bool:
    """Whether nearly all have one of two lengths: symbols of shares, parts, proteins. Words of a language have many."""
    lengths = Counter(map(len, words)).most_common(2)
    return sum(count for _, count in lengths) > _SAME_LENGTHS * len(words)


def _has_signs_in_words(sample: str) -> bool:
    """Whether most words have signs between their letters, and those are not the letters that languages use."""
    tokens = [token for token in sample.split() if 2 < len(token) <= _TOKEN_CHARS]
    if len(tokens) < _LEAST_WORDS or 2 * sum(map(bool, map(_SIGN_IN_WORD.search, tokens))) < len(tokens):
        return False
    letters = sample.encode("ascii", "ignore").translate(None, _NOT_LETTERS)
    common = len(letters) - len(letters.translate(None, _COMMON_LATIN))
    return len(letters) >= _LEAST_LETTERS and common < _STRANGE * len(letters)


def _is_letters_as_signs(signs: str) -> bool:
    """Whether signs stand where letters should: of many kinds, hardly a letter or a digit among them."""
    if len(signs) < _LEAST_LETTERS:
        return False
    others = Counter(sign for sign in signs if sign.isascii() and not sign.isalnum())
    total = sum(others.values())
    if total < _MOST_SIGNS * len(signs) or len(others) < _KINDS_OF_SIGNS:
        return False
    if max(others.values()) >= _SAME_SIGN * total:
        return False
    # Code is full of signs too, but its brackets close.
    opened, closed = others["("] + others["["] + others["{"], others[")"] + others["]"] + others["}"]
    return opened + closed < _BRACKETS * total or 2 * min(opened, closed) < max(opened, closed)


# --- outlines --------------------------------------------------------------------------------------------------------

Box = tuple[float, float, float, float]


def is_outlined(boxes: Iterable[Box], signs: int) -> bool:
    """Whether the boxes of filled paths are print: most of them of one size and close together, in rows; and more
    than the `signs` of the text layer.

    Fields of a map lie anywhere, bars of a chart are of one size but apart, ticks of a scale are too.
    """
    low, high = _LETTER_POINTS
    letters = []
    for box in islice(boxes, _MOST_BOXES):
        left, top, right, bottom = box
        height = bottom - top
        # Letters such as i and l are narrow; rules and ticks are narrower.
        if low <= height <= high and _NARROWEST * height < right - left < _LETTER_WIDTH * height:
            letters.append(box)
    letters.sort(key=lambda box: box[1] + box[3])
    if len(letters) < _LEAST_OUTLINED:
        return False
    found, row = 0, letters[:1]
    for box in letters[1:]:
        # Within the height of the first one: what has descenders or none lies lower or higher by a little.
        if box[1] + box[3] <= 2 * row[0][3]:
            row.append(box)
        else:
            found += _letters_in(sorted(row))
            row = [box]
    found += _letters_in(sorted(row))
    return found >= max(_LEAST_OUTLINED, signs, _OUTLINED_SHARE * len(letters))


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
    low, high = min(height, before), max(height, before)
    common = min(box[3], last[3]) - max(box[1], last[1])
    gap = box[0] - last[2]
    return high <= _SAME_HEIGHT * low and 2 * common >= low and -_OVERLAP * before <= gap <= _NEXT_LETTER * high
