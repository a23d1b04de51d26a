"""OCR in other scripts than Latin: scans of a sentence or two, from the picture to the words that a search looks up."""

from __future__ import annotations

import difflib
import io
import json
import unicodedata
from pathlib import Path

import pymupdf
import pytest
from PIL import Image

from engine import text
from engine.document import Method, Page
from engine.ports import StageFailed
from engine.workers import ocr
from engine.workers.tessdata import find_tessdata
from tests.unit.extraction import Desk, numbers

#: Of each the data, a text, words that a search for it would be made with, and the share of letters that must be right.
SCANS = {
    "deu": (
        "Sehr geehrte Damen und Herren, für die Übersendung der Unterlagen möchten wir uns herzlich bedanken.",
        ("Unterlagen", "Übersendung", "möchten"),
        0.97,
    ),
    "ell": (
        "Αγαπητοί συνάδελφοι, αύριο θα γίνει η συνάντηση του τμήματος πωλήσεων.",
        ("συνάντηση", "πωλήσεων", "αύριο"),
        0.95,
    ),
    "rus": (
        "Уважаемые коллеги, завтра состоится собрание отдела продаж в десять часов утра.",
        ("собрание", "продаж", "завтра"),
        0.97,
    ),
    "ara": (
        "السادة الزملاء، سيعقد اجتماع القسم غدا في الساعة العاشرة صباحا",
        ("اجتماع", "الساعة", "القسم"),
        0.9,
    ),
    "hin": ("प्रिय साथियों, कल सुबह दस बजे बिक्री विभाग की बैठक होगी।", ("बैठक", "विभाग", "सुबह"), 0.9),
    "jpn": ("会議は明日の午前十時に行われます。よろしくお願いいたします。", ("会議", "明日", "午前"), 0.9),
    "chi_sim": ("各位同事，明天上午十点召开销售部门会议，请准时参加。", ("会议", "明天", "销售"), 0.9),
}


def scan_of(sentence: str) -> bytes:
    """A PDF whose one page is a picture of the sentence; MuPDF brings fonts for every script."""
    with pymupdf.open() as drawn, pymupdf.open() as pdf:
        page = drawn.new_page(width=420, height=130)
        page.insert_htmlbox(pymupdf.Rect(20, 20, 400, 120), sentence, css="* {font-size: 14px}")
        pixels = page.get_pixmap(dpi=200, colorspace=pymupdf.csGRAY, alpha=False)
        stream = io.BytesIO()
        Image.frombytes("L", (pixels.width, pixels.height), pixels.samples).save(stream, "PNG")
        sheet = pdf.new_page(width=420, height=130)
        sheet.insert_image(sheet.rect, stream=stream.getvalue())
        data: bytes = pdf.tobytes()
        return data


def letters(of: str) -> str:
    """What is left without blanks, marks of direction and ways to write the same: what a reader sees."""
    return "".join(sign for sign in unicodedata.normalize("NFKC", of) if not sign.isspace() and sign.isprintable())


@pytest.mark.parametrize("language", SCANS)
def test_a_scan_in_any_script_is_read_and_found(language: str, tmp_path: Path) -> None:
    """The page is sent to OCR, its letters come back, and the tokens of the words that somebody looks for are there."""
    pytest.importorskip("tesserocr")
    try:
        find_tessdata([language])
    except StageFailed:
        package = f"tesseract-ocr-{language.replace('_', '-')}"
        pytest.skip(f"there is no Tesseract data for {language}: apt-get install {package}")
    sentence, words, right = SCANS[language]
    desk = Desk(tmp_path)
    assert numbers(desk.read(scan_of(sentence), "scan.pdf").pages) == [1]
    stage = ocr.open_stage({"languages": [language], "backend": "tesserocr"})
    stage.run({"file": "1", "media_type": "application/pdf", "page": 1, "prefix": "p"}, desk)
    page = Page.from_json(json.loads((desk.outbox / "p.page.json").read_bytes()))
    assert page.method is Method.OCR
    matcher = difflib.SequenceMatcher(None, letters(sentence), letters(page.text), autojunk=False)
    assert matcher.ratio() >= right, page.text
    found = set(text.keywords(page.text))
    for word in words:
        assert all(found.intersection(group) for group in text.query_keywords(word)), (word, page.text)
