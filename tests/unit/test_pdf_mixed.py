"""PDFs whose pages are of all kinds: which of them are read from their text layer, and which wait for OCR."""

from __future__ import annotations

import base64
import random
import string
from collections.abc import Callable
from pathlib import Path

import pymupdf
import pytest

from engine.document import Method
from engine.workers.pdf_legibility import Layer, is_outlined, layer_of
from tests.unit.extraction import Desk, drawing, encoded, numbers, pdf_of

PROSE = (
    "The mill grinds at night, when nobody is waiting for it, and in the morning all is done. "
    "Whoever brings corn finds flour, and whoever asks is told how much of it there was. "
) * 2
SCAN = encoded(drawing("A page that was scanned", 800, 1000), "PNG")
SHEET = pymupdf.Rect(10, 10, 390, 490)

#: What shifts each letter by 29, as programs do that number the glyphs of a font: "Language" becomes "/DQJXDJH".
SHIFTED = {code: code - 29 for code in range(33, 127)}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def prose(pdf: pymupdf.Document) -> str:
    """Of each page its own: what stands on all of them would be a header."""
    words = PROSE.split()
    at = len(pdf) * 7 % len(words)
    return " ".join(words[at:] + words[:at])


def text(pdf: pymupdf.Document) -> None:
    """Nothing but print."""
    pdf.new_page(width=400, height=500).insert_textbox(SHEET, prose(pdf))


def scan(pdf: pymupdf.Document) -> None:
    """A picture that covers the page."""
    pdf.new_page(width=400, height=500).insert_image(SHEET, stream=SCAN, keep_proportion=False)


def stamped(pdf: pymupdf.Document) -> None:
    """A stamp and a page number in print upon a scan."""
    scan(pdf)
    pdf[-1].insert_text((30, 30), "RECEIVED 12 MAY 2026")
    pdf[-1].insert_text((350, 480), str(pdf.page_count))


def searchable(pdf: pymupdf.Document) -> None:
    """A scan with what OCR once found in it, not shown."""
    scan(pdf)
    pdf[-1].insert_textbox(SHEET, prose(pdf), render_mode=3)


def hidden_noise(pdf: pymupdf.Document) -> None:
    """A scan in which OCR once found nothing but noise."""
    scan(pdf)
    pdf[-1].insert_textbox(SHEET, "l|I .:' ~~ __ /\\ ; ., `' -- |l ^^ " * 20, render_mode=3)


def garbled(pdf: pymupdf.Document) -> None:
    """Print whose font says of each letter that it is another one."""
    pdf.new_page(width=400, height=500).insert_textbox(SHEET, prose(pdf).translate(SHIFTED))


def hidden_garbled(pdf: pymupdf.Document) -> None:
    """The same, not shown, upon a scan."""
    scan(pdf)
    pdf[-1].insert_textbox(SHEET, prose(pdf).translate(SHIFTED), render_mode=3)


def outlined(pdf: pymupdf.Document) -> None:
    """Print without letters: each is drawn as a path."""
    with pymupdf.open() as drawn:
        text(drawn)
        image = drawn[0].get_svg_image(text_as_path=True)
    with pymupdf.open(stream=image.encode(), filetype="svg") as paths:
        pdf.insert_pdf(pymupdf.open(stream=paths.convert_to_pdf()))


def blank(pdf: pymupdf.Document) -> None:
    """Nothing."""
    pdf.new_page(width=400, height=500)


def chart(pdf: pymupdf.Document) -> None:
    """Bars and a few words."""
    page = pdf.new_page(width=400, height=500)
    for number in range(60):
        page.draw_rect(pymupdf.Rect(number * 6, 300 - number % 9 * 20, number * 6 + 4, 300), fill=(0, 0, 1))
    page.insert_text((20, 400), "Sacks of flour, by week")


def figure(pdf: pymupdf.Document) -> None:
    """Print with a large picture in it."""
    text(pdf)
    pdf[-1].insert_image(pymupdf.Rect(10, 200, 390, 490), stream=SCAN, keep_proportion=False)


#: Which kinds wait for OCR.
WAITING = {scan, stamped, hidden_noise, garbled, hidden_garbled, outlined}
#: Of which what is there is all there is to read.
READ = {text, searchable, chart, figure}
KINDS = [text, scan, stamped, garbled, searchable, outlined, blank, hidden_noise, chart, hidden_garbled, figure]


@pytest.mark.parametrize("seed", range(3))
def test_pages_of_all_kinds_are_told_apart_wherever_they_stand(desk: Desk, seed: int) -> None:
    """What a page is does not depend on those around it."""
    kinds: list[Callable[[pymupdf.Document], None]] = KINDS * 2
    random.Random(seed).shuffle(kinds)
    with pymupdf.open() as pdf:
        for make in kinds:
            make(pdf)
        document = desk.read(pdf.tobytes(), "mixed.pdf")
    for make, page in zip(kinds, document.pages, strict=True):
        assert page.needs_ocr is (make in WAITING), (make.__doc__, page)
        assert ("nobody is waiting" in " ".join(page.text.split())) is (make in {text, searchable, figure}), (
            make.__doc__
        )
        assert (page.method is Method.TEXT) is (make in READ or (make in WAITING and page.text != "")), make.__doc__
        assert (page.pixels > 0) is page.needs_ocr
    assert not document.notes


def test_what_stands_on_each_page_of_a_scan_is_a_stamp_however_long(desk: Desk) -> None:
    """A footer of two hundred letters, the same on all pages; what differs from page to page is their text."""
    notice = "This copy was lent to the reader named above and may neither be sold nor passed on to anybody else. " * 3
    with pymupdf.open() as pdf:
        for number in range(1, 5):
            scan(pdf)
            pdf[-1].insert_textbox(pymupdf.Rect(10, 440, 390, 490), f"{notice}\nCopy {number}", fontsize=6)
        searchable(pdf)
        document = desk.read(pdf.tobytes(), "a.pdf")
        assert numbers(document.pages) == [1, 2, 3, 4]
        assert [page.pixels > 0 for page in document.pages] == [True] * 4 + [False]
        assert "Copy 3" in document.pages[2].text
        off = Desk(desk.inbox.parent / "off", {"ocr": False}).read(pdf.tobytes(), "a.pdf")
    assert numbers(off.pages) == []
    assert "4 pages were not read: OCR is off" in off.notes


def test_a_page_that_was_turned_is_measured_as_it_was_painted(desk: Desk) -> None:
    """The picture lies over half of the sheet, whichever side is up."""
    with pymupdf.open() as pdf:
        for turned in (0, 90, 180, 270):
            page = pdf.new_page(width=300, height=900)
            page.insert_image(pymupdf.Rect(0, 300, 300, 850), stream=SCAN, keep_proportion=False)
            page.insert_text((20, 50), "RECEIVED")
            page.set_rotation(turned)
        assert numbers(desk.read(pdf.tobytes(), "a.pdf").pages) == [1, 2, 3, 4]


# --- whether letters make words --------------------------------------------------------------------------------------

#: A text each, of languages with few function words in common; a page has several times as much.
LANGUAGES = {
    "English": PROSE,
    "German": "Wer Korn bringt, bekommt Mehl; wer fragt, erfährt, wieviel es gewesen ist. Nachts mahlt die Mühle. ",
    "French": "La meule tourne pendant la nuit, quand personne n'attend, et le matin tout est prêt et bien rangé. ",
    "Polish": "Młyn miele w nocy, kiedy nikt nie czeka, a rano wszystko jest gotowe i leży na swoim miejscu. ",
    "Finnish": "Mylly jauhaa yöllä, kun kukaan ei odota, ja aamulla kaikki on valmista ja paikallaan hyllyssä. ",
    "Turkish": "Değirmen gece kimse beklemezken öğütür ve sabah olunca her şey hazırdır, yerli yerindedir. ",
    "Vietnamese": "Cối xay nghiền vào ban đêm khi không ai chờ đợi, và đến sáng thì mọi việc đã xong xuôi. ",
    "Greek": "Ο μύλος αλέθει τη νύχτα, όταν κανείς δεν περιμένει, και το πρωί όλα είναι έτοιμα στη θέση τους. ",
    "Russian": "Мельница работает ночью, когда никто не ждёт, а утром мука готова и лежит на прежнем месте. ",
    "Arabic": "تطحن الطاحونة ليلا عندما لا ينتظر أحد، وفي الصباح يكون كل شيء جاهزا في مكانه. ",
    "Hindi": "चक्की रात को पीसती है जब कोई प्रतीक्षा नहीं करता और सुबह सब कुछ तैयार रहता है। ",
    "Japanese": "水車小屋は誰も待っていない夜に粉をひき、朝にはすべてが出来上がっている。",
    "Chinese": "磨坊在无人等待的夜里磨粉，到了早晨一切都已完成，整整齐齐地放在原处。",
}
LUCK = random.Random(7)
DATA = {
    "numbers": "\n".join(" ".join(f"{LUCK.uniform(-999, 999):.2f}" for _ in range(8)) for _ in range(40)),
    "shares": "\n".join(f"{''.join(LUCK.choices(string.ascii_uppercase, k=4))} {n}.50" for n in range(90)),
    "hexadecimal": "\n".join(LUCK.randbytes(24).hex(" ") for _ in range(40)),
    "base64": base64.encodebytes(LUCK.randbytes(2_000)).decode(),
    "code": "for (int i = 0; i < n; i++) { x[i] += y[i] * (z[i] - 1); if (x[i] > max) max = x[i]; }\n" * 20,
}


@pytest.mark.parametrize("text", LANGUAGES.values(), ids=LANGUAGES)
def test_whatever_people_write_is_text(text: str) -> None:
    """In any language, in capitals too."""
    assert layer_of(text * 6) is Layer.TEXT
    assert layer_of(text.upper() * 6) is Layer.TEXT


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_data_are_not_taken_for_garbled_letters(data: str) -> None:
    """OCR would read them worse."""
    assert layer_of(data * 6) is not Layer.GARBLED
    assert layer_of(data.upper() * 6) is not Layer.GARBLED


@pytest.mark.parametrize("language", ["English", "German", "French", "Polish", "Finnish"])
def test_letters_that_make_no_words_are_not(language: str) -> None:
    """Shifted by any number of letters, or exchanged for those that come first in a font."""
    plain = LANGUAGES[language] * 6
    assert layer_of(plain.translate(SHIFTED)) is Layer.GARBLED
    order = "".join(dict.fromkeys(plain.lower().replace(" ", "")))
    in_order = dict(zip(map(ord, order), string.ascii_letters, strict=False))
    assert layer_of(plain.lower().translate(in_order)) is Layer.GARBLED


@pytest.mark.parametrize(("language", "coding"), [("Greek", "cp1253"), ("Russian", "cp1251"), ("Russian", "koi8-r")])
def test_letters_of_one_script_in_the_place_of_another_are_not(language: str, coding: str) -> None:
    """As old fonts have them: "Ìåëüíèöà"."""
    assert layer_of((LANGUAGES[language] * 6).encode(coding, "ignore").decode("latin-1")) is Layer.GARBLED


def test_rules_and_leaders_leave_it_to_the_page() -> None:
    """Whether it is a form or a scan full of noise is seen from what is painted there."""
    assert layer_of("|----+----|====|\n" * 40) is Layer.DOUBTFUL


def test_a_drawing_is_not_print() -> None:
    """Fields of a map, bricks, bars: many paths of the size of letters, and no lines of them."""
    places = [(LUCK.uniform(0, 600), LUCK.uniform(0, 800)) for _ in range(3_000)]
    assert not is_outlined([(x, y, x + LUCK.uniform(1, 30), y + LUCK.uniform(1, 30)) for x, y in places], 0)
    assert not is_outlined([(x, y, x + LUCK.uniform(5, 9), y + LUCK.uniform(5, 9)) for x, y in places], 0)
    assert not is_outlined([(x * 10, y * 10, x * 10 + 8, y * 10 + 8) for x in range(50) for y in range(50)], 0)
    print_ = [(x * 7, y * 14, x * 7 + 3 + x % 4, y * 14 + 6 + x % 3) for x in range(50) for y in range(20)]
    assert is_outlined(print_, 0)
    assert not is_outlined(print_, 1_500)  # the text layer says more than that


def test_a_page_of_text_costs_no_second_look(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is painted with is asked only where the text leaves it open."""
    asked: list[int] = []
    look = pymupdf.Page.get_bboxlog
    monkeypatch.setattr(pymupdf.Page, "get_bboxlog", lambda page: asked.append(page.number) or look(page))
    desk.read(pdf_of(PROSE, SCAN, PROSE), "a.pdf")
    assert asked == [1]
