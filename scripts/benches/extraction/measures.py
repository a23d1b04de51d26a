"""How well a text was read: character errors against a truth, words against what others found.

Rule: pure functions over texts. The character error rate is defined as the corpus defines it: edits divided by the
characters of the truth, after typographic signs, white space and hyphens at line ends were folded; receipts also by
case.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_PLAIN = str.maketrans({"“": '"', "”": '"', "’": "'", "‘": "'", "—": "-", "–": "-", "ﬁ": "fi", "ﬂ": "fl"})
_LINE_END_HYPHEN = re.compile(r"(\w)-\s*\n\s*([a-z])")
#: Extractors differ in whether they join words at a line's end, and in which hyphen they leave there; pdfium puts
#: U+0002 (or U+FFFE) in place of hyphen and line end.
_ANY_LINE_END_HYPHEN = re.compile(r"(\w)(?:[-\u00ad\u2010]\s*\n\s*|[\u0002\ufffe]\s*)(\w)")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Words that were found beside those that should be: counts, not rates, so that files add up."""

    right: int
    found: int
    wanted: int

    @property
    def recall(self) -> float:
        """Share of the wanted that was found."""
        return self.right / self.wanted if self.wanted else 1.0

    @property
    def precision(self) -> float:
        """Share of the found that was wanted."""
        return self.right / self.found if self.found else 1.0


def folded(text: str) -> str:
    """Text in which only differences are left that a reader would mind."""
    return " ".join(_LINE_END_HYPHEN.sub(r"\1\2", text.translate(_PLAIN)).split())


def error_rates(found: Mapping[str, str], truths: Mapping[str, str], groups: Mapping[str, str]) -> dict[str, float]:
    """Group -> character error rate in percent, "all" over all. Keys: names of images; what is not found is empty."""
    edits: Counter[str] = Counter()
    length: Counter[str] = Counter()
    for name, group in groups.items():
        truth, text = folded(truths[name]), folded(found.get(name, ""))
        if group == "receipt":
            truth, text = truth.upper(), text.upper()
        for key in (group, "all"):
            edits[key] += distance(truth, text)
            length[key] += len(truth)
    return {key: 100 * edits[key] / max(1, length[key]) for key in sorted(length)}


def distance(one: str, other: str) -> int:
    """Levenshtein's, with a bit for each character of `one` (Myers, J. ACM 46, 1999, as Hyyrö 2003 writes it)."""
    if not one:
        return len(other)
    places: dict[str, int] = {}
    for index, character in enumerate(one):
        places[character] = places.get(character, 0) | 1 << index
    every, last = (1 << len(one)) - 1, 1 << (len(one) - 1)
    up, down, edits = every, 0, len(one)
    for character in other:
        same = places.get(character, 0)
        vertical = same | down
        across = (((same & up) + up) ^ up) | same
        more = down | (every & ~(across | up))
        less = up & across
        edits += bool(more & last) - bool(less & last)
        more, less = more << 1 | 1, less << 1
        up = (less | ~(vertical | more)) & every
        down = more & vertical & every
    return edits


def words_of(text: str) -> Counter[str]:
    """Words and how often each stands there: compatibility forms folded, line-end hyphens joined, lower case."""
    joined = _ANY_LINE_END_HYPHEN.sub(r"\1\2", unicodedata.normalize("NFKC", text))
    return Counter(_WORD.findall(joined.lower()))


def agreed(others: Sequence[Counter[str]]) -> Counter[str]:
    """Each word as often as at least two of the others find it."""
    counts = {word: sorted((other[word] for other in others), reverse=True) for other in others for word in other}
    return Counter({word: most[1] for word, most in counts.items() if len(most) > 1 and most[1]})


def compare(found: Counter[str], wanted: Counter[str]) -> Found:
    """How many words, each as often as in both, are right."""
    return Found(right=(found & wanted).total(), found=found.total(), wanted=wanted.total())


def added(several: Sequence[Found]) -> Found:
    """Of several files together."""
    return Found(
        right=sum(one.right for one in several),
        found=sum(one.found for one in several),
        wanted=sum(one.wanted for one in several),
    )
