"""What a worker says it found: honest records come through unchanged, and every kind of lie is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import document as under_test
from engine.document import (
    MAX_FIELD_CHARS,
    Chunk,
    ChunkKind,
    Document,
    Method,
    Page,
    Part,
    chunk_fields,
    low_confidence,
    merge_page,
)
from engine.errors import MalformedMessage
from engine.model import Kind

_line = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=20)
_body = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
_count = st.integers(0, 2**53 - 1)
_pages = st.builds(
    Page,
    number=_count,
    text=_body,
    method=st.sampled_from(Method),
    confidence=st.none() | st.floats(0, 100),
    needs_ocr=st.booleans(),
    pixels=_count,
)
_files = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", fullmatch=True)
_parts = st.builds(Part, name=_line, media_type=_line, file=_files, size_bytes=_count)
_documents = st.builds(
    Document,
    kind=st.sampled_from(Kind),
    media_type=_line,
    title=_line,
    pages=st.lists(_pages, max_size=4).map(tuple),
    parts=st.lists(_parts, max_size=4, unique_by=lambda part: part.file).map(tuple),
    facts=st.dictionaries(_line, _line, max_size=4),
    notes=st.lists(_line, max_size=3).map(tuple),
)
_chunks = st.builds(Chunk, kind=st.sampled_from(ChunkKind), text=_body, keywords=_line, page=_count)

#: What JSON can say, and a little more; names of fields come often, so that deeper levels are reached.
_NAMES = (
    *("kind", "media_type", "title", "pages", "parts", "facts", "notes", "number", "text", "method", "confidence"),
    *("needs_ocr", "pixels", "name", "file", "size_bytes", "keywords", "page"),
)
_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["file", "mail", "text", "ocr", "file_chunk", "\ud800", "../x", 10**400, -1, 2**63])
)
_values = st.recursive(
    _leaves,
    lambda deeper: (
        st.lists(deeper, max_size=4) | st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=3), deeper)
    ),
    max_leaves=20,
)


def honest() -> dict[str, Any]:
    """A document as an honest worker writes it."""
    return Document(
        kind=Kind.MAIL,
        media_type="message/rfc822",
        title="Tea",
        pages=(Page(number=1, text="At five."), Page(number=2, text="", method=Method.OCR, confidence=91.5)),
        parts=(Part(name="a b.pdf", media_type="application/pdf", file="part-1.pdf", size_bytes=7),),
        facts={"sender": "Ann", "date": "2024-02-29T17:00:00+01:00"},
        notes=("text cut",),
    ).to_json()


def nested(depth: int) -> list[Any]:
    """A list in a list in a list."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@given(_documents)
def test_an_honest_document_comes_through_unchanged(document: Document) -> None:
    """Through JSON and back, field by field."""
    assert Document.from_json(json.loads(json.dumps(document.to_json()))) == document
    assert Document.from_json(document.to_json()) == document


@given(_chunks | _pages)
def test_an_honest_chunk_or_page_comes_through_unchanged(record: Chunk | Page) -> None:
    """Through JSON and back, field by field."""
    value = json.loads(json.dumps(record.to_json()))
    if isinstance(record, Page):
        assert Page.from_json(value) == record
    else:
        assert chunk_fields(value) == (record.kind, record.text, record.keywords, record.page)


@given(_values)
def test_no_json_raises_anything_but_malformed_message(value: object) -> None:
    """What is let through can be written down and read again; everything else is refused in one way."""
    with suppress(MalformedMessage):
        assert list(chunk_fields(value)) == value
    for kind in (Document, Page):
        try:
            found = kind.from_json(value)
        except MalformedMessage as error:
            str(error).encode()
        else:
            assert kind.from_json(json.loads(json.dumps(found.to_json()))) == found


@given(st.lists(st.sampled_from(list(honest())), min_size=1, max_size=3), st.lists(_values, min_size=3, max_size=3))
def test_an_honest_document_with_lies_in_it(fields: list[str], lies: list[object]) -> None:
    """Any fields replaced by anything: refused, or harmless."""
    table = honest()
    table.update(zip(fields, lies, strict=False))
    try:
        found = Document.from_json(table)
    except MalformedMessage:
        return
    json.dumps(found.to_json(), ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("path", "lie"),
    [
        (("kind",), "letter"),
        (("kind",), None),
        (("kind",), ["mail"]),
        (("kind",), nested(900)),
        (("kind",), "x" * 10_000_000),
        (("title",), 5),
        (("title",), None),
        (("title",), "x" * (MAX_FIELD_CHARS + 1)),
        (("title",), "\ud83d"),
        (("media_type",), {}),
        (("pages",), "many"),
        (("pages",), {"1": {}}),
        (("pages",), [[]]),
        (("pages", 0, "number"), -1),
        (("pages", 0, "number"), True),
        (("pages", 0, "number"), 1.0),
        (("pages", 0, "number"), 2**53),
        (("pages", 0, "text"), None),
        (("pages", 0, "text"), "\udcff"),
        (("pages", 0, "method"), "guess"),
        (("pages", 0, "method"), {}),
        (("pages", 0, "needs_ocr"), 1),
        (("pages", 0, "confidence"), "high"),
        (("pages", 0, "confidence"), True),
        (("pages", 0, "confidence"), -0.1),
        (("pages", 0, "confidence"), 100.1),
        (("pages", 0, "confidence"), float("nan")),
        (("pages", 0, "confidence"), float("inf")),
        (("pages", 0, "confidence"), 10**400),
        (("parts", 0, "file"), "../../etc/passwd"),
        (("parts", 0, "file"), "/etc/passwd"),
        (("parts", 0, "file"), ".."),
        (("parts", 0, "file"), ".hidden"),
        (("parts", 0, "file"), "-rf"),
        (("parts", 0, "file"), "a\n"),
        (("parts", 0, "file"), "a\0b"),
        (("parts", 0, "file"), "a" * 101),
        (("parts", 0, "file"), ""),
        (("parts", 0, "size_bytes"), -5),
        (("facts",), ["sender"]),
        (("facts", "sender"), 5),
        (("facts",), {1: "x"}),
        (("facts",), {str(number): "" for number in range(101)}),
        (("facts",), {"x" * (MAX_FIELD_CHARS + 1): ""}),
        (("notes",), [None]),
        (("notes",), [""] * 101),
        (("parts",), [honest()["parts"][0]] * 2),
        (("parts",), [{**honest()["parts"][0], "file": f"part-{number}"} for number in range(1001)]),
        (("pages",), [{"number": 1, "text": "", "method": "text"}] * 50_001),
    ],
)  # fmt: skip
def test_each_kind_of_lie_is_refused(path: tuple[Any, ...], lie: object) -> None:
    """Types, names, bounds, paths that lead elsewhere, texts that cannot be stored; the message stays short."""
    table = honest()
    Document.from_json(table)
    at = table = json.loads(json.dumps(table))
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = lie
    with pytest.raises(MalformedMessage) as caught:
        Document.from_json(table)
    assert len(str(caught.value)) < 300
    assert str(caught.value).isprintable()


def test_the_text_of_all_pages_together_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many pages that are each within the limit are refused when their sum is not. Bytes count: a character of four
    takes as much of our memory."""
    monkeypatch.setattr(under_test, "MAX_TEXT_BYTES", 10)
    for text in ("xxxxx", "x\U0001f600"):
        pages = [{"number": number, "text": text, "method": "text"} for number in range(3)]
        Document.from_json({**honest(), "pages": pages[:2]})
        with pytest.raises(MalformedMessage, match="more than 10 bytes of text"):
            Document.from_json({**honest(), "pages": pages})


@pytest.mark.parametrize("field", ["kind", "title", "media_type"])
def test_a_document_says_what_it_is(field: str) -> None:
    """What has no default may not be missing."""
    table = honest()
    del table[field]
    with pytest.raises(MalformedMessage):
        Document.from_json(table)


def test_what_is_shown_obeys_no_terminal() -> None:
    """Titles, names, facts and notes hold no control characters; marks that some scripts need stay."""
    table = honest()
    evil, harmless = "Tea\x1b[2J\r\nfrom\x9b\u2028here", "Tea [2J  from  here"
    table["title"] = evil
    table["facts"] = {evil: evil, "fa": "می\u200cخواهم"}
    table["notes"] = [evil]
    table["parts"][0]["name"] = evil
    found = Document.from_json(table)
    assert {found.title, found.notes[0], found.parts[0].name, *found.facts} == {harmless, "fa"}
    assert found.facts["fa"] == "می\u200cخواهم"


@pytest.mark.parametrize(
    ("field", "lie"),
    [
        ("kind", "page"),
        ("text", None),
        ("text", "x" * 100_001),
        ("keywords", ["a"]),
        ("keywords", "x" * 400_001),
        ("page", "1"),
    ],
)
def test_each_kind_of_lie_about_a_chunk_is_refused(field: str, lie: object) -> None:
    """Types, names and bounds."""
    fields = Chunk(kind=ChunkKind.FILE_CHUNK, text="text", keywords="text", page=1).to_json()
    assert chunk_fields(fields) == ("file_chunk", "text", "text", 1)
    fields[["kind", "text", "keywords", "page"].index(field)] = lie
    with pytest.raises(MalformedMessage):
        chunk_fields(fields)


def test_what_ocr_adds_beyond_the_limit_is_cut_page_by_page() -> None:
    """In bytes and whole letters, with a note of where, and of how much there was; footers are gone with their ends."""
    pages = tuple(
        Page(number=number, text=text, header=1, footer=1) for number, text in enumerate(("Köln", "é€é", "x"), 1)
    )
    document = Document(kind=Kind.FILE, media_type="application/pdf", title="t", pages=pages)
    assert under_test.cut_to_limit(document, 13) is document
    cut = under_test.cut_to_limit(document, 8)
    assert [(page.text, page.header, page.footer) for page in cut.pages] == [("Köln", 1, 1), ("é", 1, 0), ("", 0, 0)]
    assert cut.notes == ("partial: the text was cut at 8 B on page 2; in all it has 13 B",)


@pytest.mark.parametrize("text", ["", "word", "Köln am Rhein", "粉挽き", "a😀b", "\n\n"])
def test_a_cut_text_is_its_longest_beginning_that_fits(text: str) -> None:
    """At every limit."""
    for limit in range(20):
        begins = [text[:length] for length in range(len(text) + 1)]
        assert under_test.cut_text(text, limit) == [begin for begin in begins if len(begin.encode()) <= limit][-1]


def test_pages_that_ocr_was_not_sure_of_are_named() -> None:
    """By number, with their mean; not those that were sure, were read otherwise, or hold nothing."""
    unsure = [Page(number=n, text="x", method=Method.OCR, confidence=c) for n, c in ((3, 20.0), (4, 95.0), (7, 50.0))]
    others = [Page(number=8, text="x"), Page(number=9, text="", method=Method.OCR, confidence=0.0)]
    assert low_confidence([*unsure, *others]) == "low confidence: pages 3, 7 (mean 35 of 100)"
    assert low_confidence(unsure[:2]) == "low confidence: page 3 (mean 20 of 100)"
    assert low_confidence(others) == ""
    many = [Page(number=n, text="x", method=Method.OCR, confidence=1.0) for n in range(1, 40)]
    assert "20, ... (mean 1 of 100)" in low_confidence(many)


def test_a_page_that_ocr_read_keeps_its_label() -> None:
    """Its running lines were those of another text; where OCR failed, all stays."""
    page = Page(number=3, text="stamp", needs_ocr=True, pixels=9, label="iii", header=1)
    read = Page(number=3, text="words", method=Method.OCR, confidence=90.0)
    merged = merge_page(page, read)
    assert (merged.text, merged.label, merged.header, merged.confidence) == ("words", "iii", 0, 90.0)
    kept = merge_page(page, None)
    assert (kept.text, kept.label, kept.header, kept.needs_ocr) == ("stamp", "iii", 1, False)


@pytest.mark.parametrize(
    ("layer", "read", "merged"),
    [
        ("Our plan for\nAcme, secret", "Our plan for\nthe year", "Our plan for\nthe year\nAcme, secret"),
        ("Our plan\nfor the year", "Our plam for\nthe year", "Our plam for\nthe year"),
        ("Qvs qmbo\nBdnf", "Our plan", "Our plan"),
        ("", "Our plan", "Our plan"),
    ],
)
def test_what_ocr_missed_of_a_true_text_layer_is_kept(layer: str, read: str, merged: str) -> None:
    """Whole lines, once; nothing of a layer that says something else than the page."""
    page = Page(number=1, text=layer, needs_ocr=True)
    assert merge_page(page, Page(number=1, text=read, method=Method.OCR, confidence=90.0)).text == merged


def test_a_text_layer_stays_where_ocr_found_nothing_or_is_not_sure() -> None:
    """Print on a photograph; letters of a language that OCR was not set to."""
    page = Page(number=1, text="Ο μύλος αλέθει", needs_ocr=True, label="i")
    nothing = merge_page(page, Page(number=1, text="", method=Method.OCR, confidence=100.0))
    assert nothing == Page(number=1, text="Ο μύλος αλέθει", label="i")
    unsure = merge_page(page, Page(number=1, text="O uuAoc", method=Method.OCR, confidence=40.0))
    assert (unsure.text, unsure.confidence) == ("O uuAoc\nΟ μύλος αλέθει", 40.0)
    blank = merge_page(Page(number=1, text="", needs_ocr=True), Page(number=1, text="", method=Method.OCR))
    assert blank.method is Method.OCR
