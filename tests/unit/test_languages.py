"""Texts in every manner of writing: through every kind of file into chunks, and found there by their words."""

from __future__ import annotations

from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

import pytest

from engine import embedders, text
from tests import bombs
from tests.unit.extraction import Desk, text_of

#: Of each a text with a title, and words that somebody looks for, also in a form that does not stand there.
TEXTS = {
    "german": (
        "Jahresbericht",
        "Die Mühle am Fluss steht still, doch die Rechnungen für Körner häufen sich.",
        "Rechnung Mühle",
    ),
    "greek": ("Έκθεση", "Ο μύλος δίπλα στο ποτάμι σταμάτησε, αλλά οι λογαριασμοί συσσωρεύονται.", "ΜΥΛΟΣ ποτάμι"),
    "russian": ("Отчёт", "Мельница у реки остановилась, но счета за зерно продолжают приходить.", "счетам мельницы"),
    "arabic": ("تقرير", "توقفت الطاحونة عند النهر، لكن الفواتير تتراكم كل أسبوع.", "الطاحونة النهر"),
    "hebrew": ("דוח", "הטחנה ליד הנהר נעצרה, אבל החשבונות ממשיכים להגיע בכל שבוע.", "הטחנה הנהר"),
    "hindi": ("रिपोर्ट", "नदी के किनारे की चक्की रुक गई है, लेकिन बिल हर हफ्ते आते रहते हैं।", "चक्की नदी"),
    "thai": ("รายงาน", "โรงสีริมแม่น้ำหยุดทำงานแล้ว แต่ใบแจ้งหนี้ยังมาทุกสัปดาห์", "โรงสี แม่น้ำ"),
    "japanese": ("報告書", "川沿いの水車小屋は止まったが、請求書は毎週届いている。", "水車小屋 請求書"),
    "chinese": ("年度报告", "河边的磨坊已经停工，但是每个星期都有新的账单寄来。", "磨坊 账单"),
    "korean": ("보고서", "강가의 방앗간은 멈췄지만 청구서는 매주 도착하고 있다.", "방앗간 청구서"),
}


def _docx(title: str, words: str) -> bytes:
    paragraphs = [f"<w:p><w:r><w:t>{part}</w:t></w:r></w:p>".encode() for part in (title, words)]
    return bombs.docx(paragraphs)


def _mail(title: str, words: str) -> bytes:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "ann@example.com", "ben@example.com", title
    message.set_content(words)
    return bytes(message)


def _page(title: str, words: str) -> bytes:
    return f"<html><head><title>{title}</title></head><body><h1>{title}</h1><p>{words}</p></body></html>".encode()


def _escaped(title: str, words: str) -> bytes:
    signs = "".join(f"&#{ord(sign)};" for sign in words)
    return f"<!DOCTYPE html><html><head><title>{title}</title></head><body><p>{signs}</p></body></html>".encode(
        "utf-16"
    )


KINDS: dict[str, Callable[[str, str], bytes]] = {
    "a.txt": lambda title, words: f"{title}\n\n{words}\n".encode(),
    "b.txt": lambda title, words: f"{title}\n\n{words}\n".encode("utf-16"),
    "a.html": _page,
    "b.html": _escaped,
    "a.csv": lambda title, words: f'{title};"{words}";1\nx;"y\nz";2\n'.encode(),
    "a.xml": lambda title, words: f"<?xml version='1.0'?><a><b>{title}</b><c>{words}</c></a>".encode(),
    "a.docx": _docx,
    "a.eml": _mail,
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("language", TEXTS)
def test_a_text_comes_through_whole_and_is_found(language: str, name: str, tmp_path: Path) -> None:
    """Letter by letter, and every token of a question about it is among the keywords of its chunks."""
    title, words, question = TEXTS[language]
    document = Desk(tmp_path).read(KINDS[name](title, words), name)
    assert words in " ".join(text_of(document).split())
    assert title in text_of(document) or document.title == title
    assert not document.notes
    chunks = list(text.chunks_of(document, measure=embedders.measure_for("words"), max_tokens=64))
    assert len(chunks) > 1
    found = {token for chunk in chunks for token in text.keywords(chunk.text)}
    for group in text.query_keywords(question):
        assert found.intersection(group), group
