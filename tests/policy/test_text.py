"""What becomes of text: nothing of it is lost, nothing is too long, and what is asked for meets what was stored."""

from __future__ import annotations

import re
import time
import unicodedata
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.document import ChunkKind, Document, Page, chunk_fields
from engine.embedders import measure_for, spec_of
from engine.model import Kind
from engine.policy.spool import CHARS_A_CHUNK
from engine.text import (
    MAX_KEYWORD_CHARS,
    MAX_QUERY_WORDS,
    SENTENCE_CHARS,
    Measure,
    chunks_of,
    cut,
    guess_language,
    keywords,
    normalise,
    query_keywords,
    summary,
)

WORDS = measure_for("words")
MINILM_TOKENS = spec_of("builtin").max_tokens

#: Letters with and without case, accents put together and apart, scripts without blanks, blanks of all kinds, signs
#: that end sentences, signs that nobody sees, and letters that become many when they are normalised.
_SIGNS = (
    "aZß éëéй ё日本語ひカタ한국ไทयिक ँلا\u0301\u0308\u200b\u200d\ufdfa\ufb01\U0001f469\U00020000"
    "\x00\x1f\x85\u2028\t\r\n\n  .!?。…)\"'-_/0123"
)
_WORDS = (
    "night",
    "mill",
    "12,5",
    "l'été",
    "größe",
    "слово日",
    "http://a.example/b?c=d",
    ".\n\n",
    ".\n",
    "?",
    "x86_64",
    "文書",
)
texts = st.text(st.sampled_from(_SIGNS), max_size=200) | st.text(max_size=60)
prose = st.lists(st.sampled_from(_WORDS), min_size=1, max_size=80).map(" ".join)

PATHOLOGICAL = {
    "no blanks": "a" * 200_000,
    "full stops": "." * 200_000,
    "brackets after full stops": ".)" * 100_000,
    "questions": "!?" * 100_000,
    "blanks": " " * 200_000,
    "line ends": "\n" * 200_000,
    "line ends and blanks": ("\n" + " " * 50) * 4_000,
    "NULs": "\0" * 200_000,
    "combining marks": "\u0301" * 200_000,
    "one letter with marks": "e" + "\u0301" * 200_000,
    "letters with marks": "e\u0301" * 100_000,
    "invisible": "\u200b" * 200_000,
    "Han": "日本語の文書" * 33_000,
    "Thai": "ภาษาไทย" * 28_000,
    "Hangul taken apart": "\u1100\u1161\u11a8" * 66_000,
    "a family": "\U0001f469\u200d\U0001f469\u200d\U0001f467" * 40_000,
    "one letter that becomes eighteen": "\ufdfa" * 20_000,
    "words": "word " * 40_000,
    "one character": "x",
    "nothing": "",
    "half a character": "a\ud800b \udcff" * 1_000,
}


@cache
def minilm() -> Measure:
    """The built-in model's own tokenizer."""
    return measure_for("minilm")


class Counted:
    """A measure that only knows where its tokens stand."""

    def spans(self, text: str) -> Sequence[tuple[int, int]]:
        raise NotImplementedError

    def reach(self, text: str, start: int, end: int, tokens: int) -> int:
        spans = self.spans(text[start:end])
        return start + spans[tokens][0] if len(spans) > tokens else end


class Signs(Counted):
    """Every character that is not blank is a token: the strictest measure there can be."""

    def spans(self, text: str) -> Sequence[tuple[int, int]]:
        return [(at, at + 1) for at, sign in enumerate(text) if not sign.isspace()]


class Fickle(Counted):
    """Reads a word of an odd number of letters in pairs, and any other letter by letter: what is cut off changes the
    rest, as it does with real tokenizers."""

    def spans(self, text: str) -> Sequence[tuple[int, int]]:
        return [
            (at, min(at + step, match.end()))
            for match in re.finditer(r"\S+", text)
            for step in (2 if len(match.group()) % 2 else 1,)
            for at in range(match.start(), match.end(), step)
        ]


def bare(text: str) -> str:
    """A text without its blanks."""
    return "".join(text.split())


def long_document(kind: Kind) -> Document:
    """A document longer than a chunk."""
    body = "\n\n".join(f"Paragraph {n} speaks of the mill. It turns at night; nobody sees it." for n in range(300))
    facts = {"sender": "Ann <ann@mill.example>", "recipients": "Bob", "location": "Mühlgasse 3", "date": "2024-02-29"}
    return Document(
        kind=kind,
        media_type="text/plain",
        title="Über die Mühle",
        pages=(Page(number=1, text=body), Page(number=2, text=" \n "), Page(number=3, text="The end")),
        facts=facts,
    )


# --- chunks ----------------------------------------------------------------------------------------------------------


@given(texts, st.integers(1, 12), st.sampled_from([WORDS, Signs(), Fickle()]))
@example("abcdefghi", 3, Fickle())
@example("." * 9, 1, WORDS)
def test_pieces_hold_the_whole_text_and_none_is_too_long(text: str, max_tokens: int, measure: Measure) -> None:
    """Every character but blanks is in a piece, in order, and no piece is longer than the model reads."""
    pieces = list(cut(text, measure=measure, max_tokens=max_tokens))
    assert bare("".join(pieces)) == bare(text)
    assert all(piece == piece.strip() != "" for piece in pieces)
    assert all(len(measure.spans(piece)) <= max_tokens or len(piece) == 1 for piece in pieces)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts | prose, min_size=1, max_size=8).map(" ".join), st.integers(2, MINILM_TOKENS))
def test_the_real_tokenizer_reads_every_piece_whole(text: str, max_tokens: int) -> None:
    """By the built-in model's tokenizer, no piece has a token more than the model reads, and nothing is left out."""
    pieces = list(cut(text, measure=minilm(), max_tokens=max_tokens))
    assert bare("".join(pieces)) == bare(text)
    for piece in pieces:
        # A single character may be several tokens: nothing shorter can be had.
        assert len(minilm().spans(piece)) <= max_tokens or len(piece) == 1


def test_no_token_of_a_long_text_is_dropped(corpus_prose: str) -> None:
    """The tokens of the pieces, one after another, are the tokens of the text: cuts fall between words."""
    whole = [corpus_prose[start:end] for start, end in minilm().spans(corpus_prose)]
    pieces = list(cut(corpus_prose, measure=minilm(), max_tokens=MINILM_TOKENS))
    found = [[piece[start:end] for start, end in minilm().spans(piece)] for piece in pieces]
    assert [token for tokens in found for token in tokens] == whole
    assert max(map(len, found)) <= MINILM_TOKENS
    # Not one word each either: a piece ends early only for the sake of a better place, in its second half.
    assert all(len(tokens) > MINILM_TOKENS // 3 for tokens in found[:-1])


@pytest.fixture(scope="module")
def corpus_prose() -> str:
    """Some 3,000 words as people write them: paragraphs, numbers, umlauts, names."""
    sentences = [
        f"On night {n} the mill ground {n * 17 % 101} sacks of Größe-{n % 7} flour, said Mrs. O'Neill. Nobody objected!"
        for n in range(160)
    ]
    return "\n\n".join(" ".join(sentences[at : at + 5]) for at in range(0, len(sentences), 5))


@pytest.mark.parametrize("name", PATHOLOGICAL)
def test_pathological_texts_are_cut_in_reasonable_time(name: str) -> None:
    """200,000 characters of whatever kind cost seconds at most, raise nothing and lose nothing."""
    text = PATHOLOGICAL[name]
    began = time.process_time()
    pieces = list(cut(text, measure=WORDS, max_tokens=200))
    keywords(text)
    query_keywords(text)
    summary(text)
    assert time.process_time() - began < 5
    assert bare("".join(pieces)) == bare(text)
    assert all(len(piece) <= 4_000 for piece in pieces)
    assert len(pieces) <= 1 + len(PATHOLOGICAL[name]) // CHARS_A_CHUNK


@pytest.mark.parametrize("name", ["no blanks", "NULs", "one letter with marks", "one letter that becomes eighteen"])
def test_the_real_tokenizer_survives_pathological_texts(name: str) -> None:
    """What is one unknown token to the model, or none, still becomes pieces of bounded length."""
    pieces = list(cut(PATHOLOGICAL[name], measure=minilm(), max_tokens=MINILM_TOKENS))
    assert "".join(pieces) == PATHOLOGICAL[name]
    assert all(len(piece) <= 4_000 for piece in pieces)
    assert len(pieces) <= 1 + len(PATHOLOGICAL[name]) // CHARS_A_CHUNK


def test_the_best_place_to_cut_is_taken() -> None:
    """After a paragraph rather than after a sentence, a line or a word, if one ends in the second half."""

    def first(text: str, max_tokens: int) -> str:
        return next(cut(text, measure=WORDS, max_tokens=max_tokens))

    assert first("one two three\n\nfour. five six", 6) == "one two three"
    assert first("one two three four. five six\nseven eight", 7) == "one two three four."
    assert first("one two\nthree four five", 3) == "one two"
    assert first("one two three four five", 3) == "one two three"
    assert first("日本語。文書だ", 6) == "日本語。"
    assert first("one. two three four five six", 5) == "one. two three four"


def test_a_piece_of_no_tokens_is_refused() -> None:
    """Nobody can ask for pieces that hold nothing."""
    with pytest.raises(ValueError, match="at least 1"):
        list(cut("text", measure=WORDS, max_tokens=0))


@pytest.mark.parametrize("kind", Kind)
def test_every_page_is_in_the_chunks_of_its_document(kind: Kind) -> None:
    """The text of all pages, in order, within chunks of the kind that the item has, each bounded."""
    document = long_document(kind)
    chunks = list(chunks_of(document, measure=WORDS, max_tokens=50))
    body = {Kind.FILE: ChunkKind.FILE_CHUNK, Kind.MAIL: ChunkKind.EMAIL_SUM, Kind.EVENT: ChunkKind.SCHEDULE_CONTEXT}
    said = bare("".join(chunk.text for chunk in chunks if chunk.kind is body[kind]))
    assert said.endswith(bare("".join(page.text for page in document.pages)))
    assert all(0 < len(WORDS.spans(chunk.text)) <= 50 for chunk in chunks)
    assert all(chunk.keywords == " ".join(keywords(chunk.text)) for chunk in chunks)
    assert {chunk.page for chunk in chunks if chunk.kind is ChunkKind.FILE_CHUNK} <= {1, 3}
    assert all(chunk_fields(chunk.to_json()) == tuple(chunk.to_json()) for chunk in chunks)


@given(st.lists(texts | prose, min_size=1, max_size=4), st.sampled_from(Kind), st.integers(2, 12))
def test_only_chunks_without_a_word_are_left_out(pages: list[str], kind: Kind, max_tokens: int) -> None:
    """Every piece of a page in which there is a word is a chunk, in order; none of the others is."""
    numbered = tuple(Page(number=number, text=text) for number, text in enumerate(pages, start=1))
    document = Document(kind=kind, media_type="text/plain", title="Mill", pages=numbered)
    chunks = [chunk.text for chunk in chunks_of(document, measure=WORDS, max_tokens=max_tokens)]
    assert all(any(is_of_a_word(sign) for sign in chunk) for chunk in chunks)
    if kind is not Kind.EVENT:  # whose pages are cut in one piece with what stands before them
        pieces = [piece for text in pages for piece in cut(text, measure=WORDS, max_tokens=max_tokens)]
        wanted = [piece for piece in pieces if any(sign.isalnum() for sign in piece)]
        rest = iter(chunks)
        assert all(piece in rest for piece in wanted)


def is_of_a_word(sign: str) -> bool:
    """A letter or digit, or a mark that belongs to one."""
    return sign.isalnum() or unicodedata.category(sign) in ("Mn", "Mc")


def test_a_line_of_dashes_is_no_chunk() -> None:
    """It would be found for any question that has nothing better; the words around it stay."""
    pages = (Page(number=1, text="-" * 500 + "\n\n***"), Page(number=2, text="The end. " + "_" * 20))
    document = Document(kind=Kind.FILE, media_type="text/plain", title="Mill", pages=pages)
    chunks = list(chunks_of(document, measure=Signs(), max_tokens=27))
    assert [(chunk.text, chunk.page) for chunk in chunks if chunk.page] == [("The end. " + "_" * 20, 2)]


def test_an_event_says_when_where_and_who_but_not_its_identifiers() -> None:
    """The rule in words, not as it stands; what nobody would ask for is kept as a fact and said nowhere."""
    facts = {
        "start": "2026-04-18T10:00:00",
        "location": "Room Heron",
        "attendees": "Bob",
        "recurrence": "every week 10 times",
        "rrule": "FREQ=WEEKLY;COUNT=10",
        "url": "https://mill.example/1",
        "uid": "1-20260418@mill.example",
    }
    event = Document(kind=Kind.EVENT, media_type="text/calendar", title="Plans", facts=facts)
    (chunk,) = chunks_of(event, measure=WORDS, max_tokens=50)
    assert chunk.text == "Plans\n2026-04-18T10:00:00\nRoom Heron\nBob\nevery week 10 times"
    strange = Document(kind=Kind.EVENT, media_type="text/calendar", title="Plans", facts={"rrule": "FREQ=NOW"})
    assert next(chunks_of(strange, measure=WORDS, max_tokens=50)).text == "Plans\nFREQ=NOW"


@pytest.mark.parametrize("kind", Kind)
def test_identifiers_of_mails_are_never_in_a_chunk(kind: Kind) -> None:
    """They lead to other mails, and say nothing."""
    facts = dict.fromkeys(("message_id", "in_reply_to", "references"), "<1@mill.example>")
    mail = Document(kind=kind, media_type="message/rfc822", title="Plans", facts=facts)
    assert [chunk.text for chunk in chunks_of(mail, measure=WORDS, max_tokens=50)] == ["Plans"]


@pytest.mark.parametrize("kind", Kind)
def test_title_and_facts_are_found_by_their_words(kind: Kind) -> None:
    """What stands in no page, the title and who or where, has a chunk of its own or stands before the text."""
    head = next(chunks_of(long_document(kind), measure=WORDS, max_tokens=50))
    assert head.kind in (ChunkKind.FILE_SUM, ChunkKind.EMAIL_TITLE, ChunkKind.SCHEDULE_CONTEXT)
    assert head.page == 0
    assert head.text.startswith("Über die Mühle\nAnn <ann@mill.example>\nBob")
    assert ("Mühlgasse" in head.text) == (kind is not Kind.MAIL)


def test_an_item_without_text_is_found_by_its_title() -> None:
    """A picture in which nothing could be read still has one chunk; of a mail without a body the subject remains."""
    for kind in Kind:
        bare_item = Document(kind=kind, media_type="image/png", title="holiday.png")
        assert [chunk.text for chunk in chunks_of(bare_item, measure=WORDS, max_tokens=50)] == ["holiday.png"]


def test_a_fact_that_repeats_the_title_is_said_once() -> None:
    """The summary of an event or file does not say the same line twice."""
    event = Document(
        kind=Kind.EVENT, media_type="text/calendar", title="Tea", facts={"summary": " Tea ", "location": ""}
    )
    assert [chunk.text for chunk in chunks_of(event, measure=WORDS, max_tokens=50)] == ["Tea"]


# --- keywords --------------------------------------------------------------------------------------------------------


def meets(question: str, text: str) -> bool:
    """Every word of the question is found among the keywords of the text."""
    stored = set(keywords(text))
    wanted = query_keywords(question)
    return bool(wanted) and all(stored & set(group) for group in wanted)


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("Rechnung", "Die Rechnungen sind nicht bezahlt und werden auf den nächsten Monat verschoben."),
        ("Rechnungen", "Das ist die Rechnung für den Monat Mai."),
        ("GROSSE", "Die Größe und die große Straße"),
        ("Straße", "An der Strasse 3 ist es nicht"),
        ("maisons", "Il y a une maison dans la rue et une autre sur la place."),
        ("eleve", "Les élèves sont dans la classe avec le professeur."),
        ("naïve", "a naive idea"),
        ("книги", "Эта книга была на столе, и он не читал её."),
        ("еще", "Мы ещё не были там"),
        ("Йогурт", "йогурт и молоко"),
        ("invoice", "All invoices were paid."),
        ("running", "He runs the mill"),
        ("ﬁnance", "finance"),
        ("Ｆｕｌｌ", "full width"),
        ("ørsted", "Orsted"),
        ("Łódź", "lodz"),
        ("文書", "これは日本語の文書です"),
        ("日", "日本語"),
        ("语言", "中文语言处理"),
        ("ภาษา", "เอกสารภาษาไทย"),
        ("한국어", "한국어를 공부합니다"),
        ("हिन्दी", "यह हिन्दी में है"),
        ("नमस्ते", "नमस्ते दुनिया"),
        ("שלום", "שָׁלוֹם"),
        ("سلام", "سَلَام"),
        ("cafe\u0301", "Café au lait"),
        ("x86_64", "the x86_64 build"),
        ("foo-bar", "foo-bar"),
        ("PDF文書", "このPDF文書"),
    ],
)
def test_a_question_meets_the_text(question: str, text: str) -> None:
    """Endings, case, accents, widths and scripts apart, the same word is the same token."""
    assert meets(question, text)


@pytest.mark.parametrize(
    ("question", "text"),
    [("mill", "null"), ("本日", "日本"), ("книга", "стол"), ("ё", "ю"), ("й", "и"), ("ไทย", "ภาษา")],
)
def test_another_word_is_not_met(question: str, text: str) -> None:
    """What is not the same is not found: pairs keep the order of characters, й is a letter of its own."""
    assert not meets(question, text)


@given(texts | prose)
def test_every_word_of_a_text_finds_it(text: str) -> None:
    """Whatever the language seems to be, a word copied out of a text is a question that meets it."""
    stored = set(keywords(text))
    for word in text.split()[:20]:
        assert all(stored & set(group) for group in query_keywords(word)[:10]), word


@given(texts | prose)
def test_keywords_can_be_stored_as_a_line(text: str) -> None:
    """A token is bounded and holds no blanks or punctuation: a line of them falls apart as it was put together."""
    found = keywords(text)
    assert " ".join(found).split(" ") == (found or [""])
    assert all(0 < len(token) <= MAX_KEYWORD_CHARS + 8 for token in found)
    assert not any(sign in token for token in found for sign in "\"'()*:^-+_\0\n")
    assert keywords(text) == found


def test_a_pasted_page_is_no_endless_question() -> None:
    """A question is looked up by so many words; the rest of it is left out."""
    assert len(query_keywords(" ".join(f"word{n}" for n in range(1000)))) == MAX_QUERY_WORDS
    assert len(query_keywords("日本語の文書" * 100 + "".join(map(chr, range(0x4E00, 0x4F00))))) == MAX_QUERY_WORDS
    assert query_keywords("mill mill MILL") == query_keywords("mill")


def test_repeated_words_count_in_the_index() -> None:
    """Keyword search weighs how often a word stands there."""
    assert keywords("mill, mill and Mill").count("mill") == 3


@given(st.text(max_size=60))
def test_folding_twice_changes_nothing_more(text: str) -> None:
    """What was stored folded is found folded: a second time changes nothing but what a first brought together."""
    once = normalise(text)
    assert normalise(normalise(once)) == normalise(once)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "This is the mill that we have not seen"),
        ("de", "Das ist die Mühle, die wir nicht gesehen haben"),
        ("fr", "C'est le moulin que nous avons vu dans la vallée"),
        ("es", "Este es el molino que hemos visto en los montes"),
        ("it", "Questo è il mulino che abbiamo visto nella valle"),
        ("nl", "Dit is de molen die wij niet hebben gezien op het land"),
        ("pt", "Este é o moinho que não foi visto na serra"),
        ("ru", "Это мельница, которую мы не видели в долине"),
        ("en", ""),
    ],
)
def test_languages_are_told_apart(language: str, text: str) -> None:
    """One sentence is enough; where nothing speaks for any, it is English."""
    assert guess_language([word for word in normalise(text).replace(",", " ").split() if word.isalpha()]) == language


# --- summaries -------------------------------------------------------------------------------------------------------


@given(texts | prose, st.integers(1, 5))
def test_a_summary_is_bounded_and_said_in_the_texts_own_words(text: str, sentences: int) -> None:
    """At most so many sentences, each of bounded length, in the order of the text; the same every time."""
    found = summary(text, sentences)
    assert len(found) <= sentences * (SENTENCE_CHARS + 1)
    assert summary(text, sentences) == found
    rest = iter(bare(text))
    assert all(sign in rest for sign in bare(found))  # a subsequence: nothing is added, nothing turned round


def test_a_summary_holds_what_the_text_is_about() -> None:
    """Sentences made of the words that come back are taken; greetings and asides are not."""
    text = (
        "Hello there. The mill grinds flour at night. It was a day in May. The flour of the mill goes to the baker. "
        "Somebody sneezed loudly once upon another afternoon. The baker pays the mill for the flour every night. Yes."
    )
    found = summary(text, 2)
    assert "mill" in found
    assert "sneezed" not in found
    assert found.count(".") == 2


def test_a_summary_does_not_depend_on_what_is_far_behind() -> None:
    """Only the beginning is weighed, so that a summary of a huge document costs no more than one of a large one."""
    start = "The mill grinds flour at night. " * 2_000
    assert summary(start + "Another thing altogether is said here. " * 50_000) == summary(start)


@pytest.mark.parametrize("max_tokens", [4, 5, 10])
def test_a_letter_keeps_its_marks(max_tokens: int) -> None:
    """Thai, whose tones and vowels stand behind their letter, is cut between letters only."""
    text = "ก่อนที่จะเริ่มเก็บเกี่ยวน้ำผึ้ง" * 3
    pieces = list(cut(text, measure=WORDS, max_tokens=max_tokens))
    assert "".join(pieces) == text
    assert not any(unicodedata.combining(piece[0]) for piece in pieces if len(piece) > 1)


def test_running_headers_and_footers_are_cut_once() -> None:
    """They stand in the chunk of the first page that shows them; numbers that count make no difference."""
    pages = tuple(
        Page(number=n, text=f"Annual report {n}\nPage body {word} with words.\nPage {n}", header=1, footer=1)
        for n, word in enumerate(("one", "two", "three"), 1)
    )
    document = Document(kind=Kind.FILE, media_type="application/pdf", title="report", pages=pages)
    texts = [chunk.text for chunk in chunks_of(document, measure=WORDS, max_tokens=50) if chunk.page]
    assert texts == [
        "Annual report 1\nPage body one with words.\nPage 1",
        "Page body two with words.",
        "Page body three with words.",
    ]
