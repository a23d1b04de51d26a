"""What the engine does to text: keyword tokens, chunks that a model can read whole, extractive summaries.

Rule: pure. The same text gives the same answer everywhere: nothing here knows the clock, the disk, luck or another
item. Keyword tokens of the index and of a question come from the same functions, so that they meet.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol

import Stemmer

from engine.document import Chunk, ChunkKind, Document, Page
from engine.model import Kind

#: Facts that identify or count and are no words of the item: kept beside it, never in the text of a chunk.
_UNSAID: Final = frozenset(
    {"uid", "url", "rrule", "events", "message_id", "in_reply_to", "references", "list_id", "size"}
)
#: Text is measured in slices of at most so many characters: the cost of a chunk then does not grow with the length
#: of the document, and no chunk is ever longer.
BLOCK_CHARS: Final = 4_000
#: A longer "word" is a hash, a key or encoded data; nobody types more of it than this.
MAX_KEYWORD_CHARS: Final = 64
#: Of one language: 1 MB. Ten thousand pages of prose hold no more that come often.
STEMS_REMEMBERED: Final = 8_000
#: No letter of any language has so many marks.
MARKS: Final = 8
#: Words of a question that are looked up. A pasted page would otherwise become a query of thousands of terms.
MAX_QUERY_WORDS: Final = 64
#: Sentences weighed for a summary come from the beginning, where documents say what they are.
SUMMARY_CHARS: Final = 50_000
#: A "sentence" longer than this is a table or a listing; its beginning has to do.
SENTENCE_CHARS: Final = 400

_LANGUAGES: Final = {
    "en": "english",
    "de": "german",
    "fr": "french",
    "es": "spanish",
    "it": "italian",
    "nl": "dutch",
    "pt": "portuguese",
    "ru": "russian",
}
#: The most frequent function words of each language, as `normalise` leaves them. They only tell languages apart.
_FUNCTION_WORDS: Final = {
    "en": "the of and to in is that it for was with on as are this be have from not by at you i we or an which",
    "de": "der die das und ist nicht ein eine zu den mit von auf fur im dem des sich auch wir sie es ich werden wird",
    "fr": "le la les et est des un une du dans que pour pas qui sur avec au ce nous vous je ne par il sont plus",
    "es": "el la los las y es de un una en que para no por con del se su al lo como mas este pero son esta",
    "it": "il la di e che un una per non con del della sono nel si come alla dei gli piu questo anche ho le ha",
    "nl": "de het een en van is niet dat op te zijn voor met aan er ook die wij ik je bij maar naar hebben wordt",
    "pt": "o a os as e de um uma que para nao com do da em por no na se mais como ao foi sao esta",
    "ru": "и в не на я что он с это как а но по к у из за от для мы вы они был его она так же",
}
_STOP_WORDS: Final = {language: frozenset(words.split()) for language, words in _FUNCTION_WORDS.items()}
#: The languages that have the word among theirs.
_SPEAKERS: Final = {
    word: tuple(language for language, words in _STOP_WORDS.items() if word in words)
    for word in frozenset().union(*_STOP_WORDS.values())
}

_ACCENTS = re.compile(
    # Combining marks of Latin, Greek and Cyrillic, except the breve of й; Hebrew and Arabic points.
    r"[\u0300-\u036f\u0591-\u05bd\u05bf\u05c1\u05c2\u05c7\u064b-\u0652\u0670](?<!и\u0306)"
)
#: Letters that have no decomposition, though people type them without their stroke.
_STROKES: Final = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "æ": "ae", "œ": "oe", "ı": "i", "ð": "d", "þ": "th"})
_STROKED = re.compile("[" + "".join(map(chr, _STROKES)) + "]")
#: Word characters, and the vowel signs of Indic and South-East Asian scripts, which Python does not count as such.
_WORD = re.compile(
    r"(?:[^\W_]|[\u0300-\u036f\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963\u0981-\u0983\u09bc-\u09cd\u0a01-\u0a03"
    r"\u0a3c-\u0a4d\u0a81-\u0a83\u0abc-\u0acd\u0b01-\u0b03\u0b3c-\u0b4d\u0bbe-\u0bcd\u0c00-\u0c04\u0c3e-\u0c4d"
    r"\u0c81-\u0c83\u0cbc-\u0ccd\u0d00-\u0d03\u0d3b-\u0d4d\u0dca-\u0ddf\u0e31-\u0e3a\u0e47-\u0e4e\u0eb1-\u0ebc"
    r"\u0ec8-\u0ecd\u102b-\u103e\u1056-\u109d\u17b4-\u17d3\u3099\u309a])+"
)
#: The same for texts that are all ASCII, and for those without such signs: many times as fast.
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_BARE_WORD = re.compile(r"[^\W_]+")
_SIGNS = re.compile(r"[\u0300-\u036f\u0900-\u17d3\u3099\u309a]")
#: Scripts written without spaces (and Hangul, whose words grow endings): indexed by single characters and pairs.
_DENSE = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf"
    r"\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+"
)
_FIRST_DENSE: Final = "\u0e00"

_SENTENCE_END = re.compile(r"[.!?…][)\]\"'”’»]*\s+|[。！？]+\s*|\n[ \t\r]*\n\s*")
_DIGITS = re.compile(r"\d+")
#: Where a chunk may end, the best kind of place first: after a paragraph, a sentence, a line, a word.
_BREAKS: Final = (
    re.compile(r"\n[ \t\r]*\n\s*"),
    re.compile(r"[.!?…][)\]\"'”’»]*\s+|[。！？]+\s*"),
    re.compile(r"\n\s*"),
    re.compile(r"\s+"),
)


class Measure(Protocol):
    """Counts text the way a model reads it."""

    def spans(self, text: str) -> Sequence[tuple[int, int]]:
        """Where each token stands in `text`, as (start, end) in characters, in order."""
        ...

    def reach(self, text: str, start: int, end: int, tokens: int) -> int:
        """How far the first `tokens` tokens of text[start:end] go: to where the next one begins, or to `end`."""
        ...


# --- keywords --------------------------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """The form in which words are compared: compatibility forms, case and accents folded (NFKC, casefold).

    й stays й: it is a letter of its own, and the Russian stemmer needs it. ё becomes е, as it is usually typed.
    """
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFKC", text).casefold()
    if folded.isascii():
        return folded
    bare = unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFKD", folded)))
    return bare.translate(_STROKES) if _STROKED.search(bare) else bare


def guess_language(words: Iterable[str]) -> str:
    """The language, as two letters, whose function words are most frequent among normalised `words`; else "en"."""
    found = dict.fromkeys(_STOP_WORDS, 0)
    for word, count in Counter(filter(_SPEAKERS.__contains__, words)).items():
        for language in _SPEAKERS[word]:
            found[language] += count
    return max(found, key=found.__getitem__)


class _Stems(dict[str, str]):
    """The stem of each word that was asked for, in one language: most words of a text have come before."""

    def __init__(self, language: str) -> None:
        self._stemmer = _stemmer(language)

    def __missing__(self, word: str) -> str:
        if len(self) >= STEMS_REMEMBERED:
            self.clear()
        stem: str = self._stemmer.stemWord(word)
        self[word] = stem
        return stem


class Stemming:
    """Keyword tokens, with stems that are remembered. Not for use by two threads."""

    def __init__(self) -> None:
        self._stems: dict[str, _Stems] = {}

    def keywords(self, text: str) -> list[str]:
        """The keyword tokens of a text, in order, repeated as often as they stand there.

        Words of any script, stemmed in the language that the text seems to be in; for scripts without spaces every
        character and every pair of neighbours. A token holds neither blanks nor punctuation.
        """
        normalised = normalise(text)
        words = _words(normalised)
        if not words:
            return []
        language = guess_language(words)
        stems = self._stems.get(language)
        if stems is None:
            stems = self._stems[language] = _Stems(language)
        if not _DENSE.search(normalised):
            if len(max(words, key=len)) > MAX_KEYWORD_CHARS:
                words = [word[:MAX_KEYWORD_CHARS] for word in words]
            return list(map(stems.__getitem__, words))
        found: list[str] = []
        for word in words:
            for piece, dense in _pieces(word):
                if dense:
                    found.extend(piece)
                    found.extend(_pairs(piece))
                else:
                    found.append(stems[piece[:MAX_KEYWORD_CHARS]])
        return found


def keywords(text: str) -> list[str]:
    """The keyword tokens of one text: see `Stemming`, which is for many."""
    return Stemming().keywords(text)


def query_keywords(text: str) -> list[list[str]]:
    """For each word of a question, the tokens that it may have become in an index, the first being the likeliest.

    A question is too short to tell its language, so a word is stemmed in all of them. Repeated words count once.
    """
    words = _words(normalise(text))
    first = guess_language(words)
    stemmers = [_stemmer(first), *(_stemmer(code) for code in _LANGUAGES if code != first)]
    groups: dict[tuple[str, ...], None] = {}
    for word in words:
        for piece, dense in _pieces(word):
            if not dense:
                cut = piece[:MAX_KEYWORD_CHARS]
                groups[tuple(dict.fromkeys(stemmer.stemWord(cut) for stemmer in stemmers))] = None
            elif len(piece) == 1:
                groups[(piece,)] = None
            else:
                groups.update({(pair,): None for pair in _pairs(piece)})
        if len(groups) >= MAX_QUERY_WORDS:
            break
    return [list(group) for group in groups][:MAX_QUERY_WORDS]


def _words(normalised: str) -> list[str]:
    if normalised.isascii():
        return _ASCII_WORD.findall(normalised)
    return (_WORD if _SIGNS.search(normalised) else _BARE_WORD).findall(normalised)


def _pieces(word: str) -> Iterator[tuple[str, bool]]:
    """A run of word characters, cut where the manner of writing changes: (piece, written without spaces?)."""
    if max(word) < _FIRST_DENSE:
        yield word, False
        return
    done = 0
    for match in _DENSE.finditer(word):
        if match.start() > done:
            yield word[done : match.start()], False
        yield match.group(), True
        done = match.end()
    if done < len(word):
        yield word[done:], False


def _pairs(run: str) -> list[str]:
    return [run[at : at + 2] for at in range(len(run) - 1)]


def _stemmer(language: str) -> Stemmer.Stemmer:
    # A new one each time: they are cheap (3 microseconds), and one that is shared by threads is not safe.
    return Stemmer.Stemmer(_LANGUAGES[language])


# --- summaries -------------------------------------------------------------------------------------------------------


def summary(text: str, sentences: int = 3) -> str:
    """The sentences that hold most of what the text talks about, in their order, joined by blanks.

    A sentence's weight is the mean frequency of its distinct words in the text (Luhn 1958; SumBasic, Nenkova and
    Vanderwende 2005), function words aside. Ties go to the earlier one.
    """
    found = [sentence[:SENTENCE_CHARS] for sentence in _sentences(text[:SUMMARY_CHARS])]
    if len(found) <= sentences:
        return " ".join(found)
    bags = [_words(normalise(sentence)) for sentence in found]
    language = guess_language([word for bag in bags for word in bag])
    stop_words = _STOP_WORDS[language]
    topics = [{word for word in bag if word not in stop_words and len(word) > 1} for bag in bags]
    frequency = Counter(word for bag in bags for word in bag)

    def weight(index: int) -> float:
        # Fewer than four words say nothing on their own: headings, numbers of pages, greetings.
        words = topics[index]
        return sum(frequency[word] for word in words) / len(words) if len(words) > 3 else 0.0

    best = sorted(range(len(found)), key=lambda index: (-weight(index), index))[:sentences]
    return " ".join(found[index] for index in sorted(best))


def _sentences(text: str) -> list[str]:
    found, done = [], 0
    for match in _SENTENCE_END.finditer(text):
        found.append(text[done : match.end()])
        done = match.end()
    found.append(text[done:])
    return [flat for sentence in found if (flat := " ".join(sentence.split()))]


# --- chunks ----------------------------------------------------------------------------------------------------------


def chunks_of(
    document: Document, *, measure: Measure, max_tokens: int, stemming: Stemming | None = None
) -> Iterator[Chunk]:
    """Everything of a document that gets a vector, one by one. No chunk has more than `max_tokens` tokens by `measure`.

    Files: one or more FILE_SUM (title, facts, extractive summary: a picture without text is still found by its name)
    and the FILE_CHUNKs of every page. Mails: EMAIL_TITLE (subject, sender, recipients) and EMAIL_SUM (the whole mail).
    Events: SCHEDULE_CONTEXT. What is too long becomes several chunks. Left out are outer blanks, running headers and
    footers after the first page that they stand on, and a chunk in which there is no word: a line of dashes answers
    nothing. stemming: of a caller that has many documents.
    """
    stemming = stemming or Stemming()
    pages = list(_bodies(document.pages))
    match document.kind:
        case Kind.MAIL:
            head = _labelled(document, ("sender", "recipients"))
            parts = [(ChunkKind.EMAIL_TITLE, 0, head)]
            parts += [(ChunkKind.EMAIL_SUM, number, text) for number, text in pages]
        case Kind.EVENT:
            head = _labelled(document, tuple(document.facts))
            whole = "\n".join([head, *(text for _, text in pages if text.strip())])
            parts = [(ChunkKind.SCHEDULE_CONTEXT, 0, whole)]
        case Kind.FILE:
            gist = summary("\n\n".join(_beginning(pages)))
            head = _labelled(document, tuple(document.facts))
            parts = [(ChunkKind.FILE_SUM, 0, f"{head}\n{gist}")]
            parts += [(ChunkKind.FILE_CHUNK, number, text) for number, text in pages]
    for kind, number, text in parts:
        for piece in cut(text, measure=measure, max_tokens=max_tokens):
            tokens = stemming.keywords(piece)
            if tokens:
                yield Chunk(kind=kind, text=piece, keywords=" ".join(tokens), page=number)


def _bodies(pages: Sequence[Page]) -> Iterator[tuple[int, str]]:
    """(number, text) of each page, without the running headers and footers that an earlier page has shown already.

    One that differs in its numbers only is the same: "Page 3", "Page 4".
    """
    seen: set[str] = set()
    for page in pages:
        if not (page.header or page.footer):
            yield page.number, page.text
            continue
        lines = page.text.split("\n")
        first, last = page.header, max(page.header, len(lines) - page.footer)
        kept = lines[first:last]
        for edge, at_top in ((lines[:first], True), (lines[last:], False)):
            name = _DIGITS.sub("#", "\n".join(edge))
            if name not in seen:
                seen.add(name)
                kept = [*edge, *kept] if at_top else [*kept, *edge]
        yield page.number, "\n".join(kept)


def cut(text: str, *, measure: Measure, max_tokens: int) -> Iterator[str]:
    """Cut a text into pieces of at most `max_tokens` tokens, at the ends of paragraphs, sentences, lines or words.

    Together the pieces hold every character of the text but blanks at their ends. Empty pieces are left out.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens = {max_tokens}; must be at least 1")
    at = 0
    while at < len(text):
        stop = _piece_end(text, at, measure, max_tokens)
        piece = text[at:stop].strip()
        if piece:
            yield piece
        at = stop


def _piece_end(text: str, at: int, measure: Measure, max_tokens: int) -> int:
    """Where the piece that begins at `at` ends; it has one character at least."""
    end = min(len(text), at + BLOCK_CHARS)
    limit = measure.reach(text, at, end, max_tokens)
    if limit == len(text):
        return limit
    stop = _break_before(text, at, limit)
    # A word that is cut in its middle may be read as more tokens than it was before: measure what is left of it.
    while stop - at > 1 and not text[stop - 1].isspace() and _is_longer(text[at:stop].strip(), measure, max_tokens):
        stop = _break_before(text, at, stop - max(1, (stop - at) // 16))
    # Never between a letter and its marks: Thai has vowels and tones behind a letter, and no blanks to cut at.
    if stop < len(text) and unicodedata.combining(text[stop]):
        least = max(at + 1, stop - MARKS)
        stop = next((back for back in range(stop - 1, least, -1) if not unicodedata.combining(text[back])), stop)
    return max(at + 1, stop)


def _is_longer(piece: str, measure: Measure, max_tokens: int) -> bool:
    return measure.reach(piece, 0, len(piece), max_tokens) < len(piece)


def _break_before(text: str, at: int, limit: int) -> int:
    """The best place to end a piece that begins at `at`, at or before `limit`, in its second half if there is one."""
    half = at + (limit - at) // 2
    for pattern in _BREAKS:
        best = 0
        for match in pattern.finditer(text, half, limit):
            best = match.end()
        if best:
            return best
    return limit


def _labelled(document: Document, facts: Sequence[str]) -> str:
    """The title and the named facts, a line each, but what is _UNSAID. Facts that repeat the title are left out.

    A rule of repetition is said in words; as it stands only where nobody could put it into words.
    """
    said = [name for name in facts if name not in _UNSAID or (name == "rrule" and not document.facts.get("recurrence"))]
    values = [document.title, *(document.facts.get(name, "") for name in said)]
    return "\n".join(dict.fromkeys(value.strip() for value in values if value.strip()))


def _beginning(pages: Sequence[tuple[int, str]]) -> Iterator[str]:
    """The first pages, as far as a summary reads."""
    left = SUMMARY_CHARS
    for _, text in pages:
        if left <= 0:
            return
        yield text[:left]
        left -= len(text)
