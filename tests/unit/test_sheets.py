"""What is seen on a page, and what it is made into before it is read; and pages that need it, read by both backends."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy
import pymupdf
import pytest
from PIL import Image, ImageDraw, ImageFont

from engine.workers import ocr, recognisers, sheets
from engine.workers.reading import MAX_SHEET_PIXELS
from engine.workers.recognisers import Reading
from engine.workers.sheets import LETTER_PIXELS, Look
from tests.unit.extraction import encoded

WORDS = (
    "The night watch walked along the harbour and counted every lamp that was still burning. Nobody spoke, since there "
    "was little to say and much to hear: ropes against masts, water under the piers, and the slow bell of a long day."
)
#: Of the words, so many have to be found again.
ENOUGH = 0.95


def page_of(dpi: int = 200, size: float = 10, font: str = "helv") -> Image.Image:
    """A small page of print, gray."""
    pdf = pymupdf.open()
    page = pdf.new_page(width=300, height=60 + size * 40)
    page.insert_textbox(pymupdf.Rect(30, 30, 270, 30 + size * 40), WORDS, fontsize=size, fontname=font)
    pixels = page.get_pixmap(dpi=dpi, colorspace=pymupdf.csGRAY)
    return Image.frombytes("L", (pixels.width, pixels.height), pixels.samples)


def array_of(image: Image.Image) -> Any:
    return numpy.asarray(image)


def noisy(image: Image.Image) -> Image.Image:
    grain = numpy.random.default_rng(4).normal(0, 12, (image.height, image.width))
    return Image.fromarray(numpy.clip(235 - (255 - array_of(image)) * 0.8 + grain, 0, 255).astype(numpy.uint8))


def in_a_shadow(image: Image.Image) -> Image.Image:
    """Faint print, photographed with the light from one side."""
    across = numpy.linspace(1.0, 0.35, image.width)
    return Image.fromarray(((120 + array_of(image) * (135 / 255)) * across).astype(numpy.uint8))


def on_a_table(image: Image.Image) -> Image.Image:
    """A note, photographed with much of the dark table that it lies on, and light from one side."""
    photograph = Image.new("L", (image.width * 2, image.height * 2), 60)
    photograph.paste(image.point(lambda gray: int(gray * 0.85)), (image.width // 2, image.height // 2))
    across = numpy.linspace(0.8, 1.05, photograph.width)
    return Image.fromarray((array_of(photograph) * across).astype(numpy.uint8))


def below_a_headline(image: Image.Image) -> Image.Image:
    poster = Image.new("L", (image.width, image.height + 700), 255)
    ImageDraw.Draw(poster).multiline_text((60, 20), "OLD\nMILL", fill=0, font=ImageFont.load_default(260))
    poster.paste(image, (0, 700))
    return poster


def skewed(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=255, expand=True)


# --- what is seen ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [-9, -5, -1.5, -0.5, 0, 0.5, 2, 7])
def test_skew_is_seen_to_a_fifth_of_a_degree(degrees: float) -> None:
    """Upwards is positive, as pictures are rotated."""
    assert sheets.look_at(array_of(noisy(skewed(page_of(), degrees)))).skew == pytest.approx(degrees, abs=0.2)


@pytest.mark.parametrize(("dpi", "size", "letters"), [(100, 10, 10), (200, 10, 20), (300, 10, 30), (200, 16, 32)])
def test_the_height_of_letters_is_seen(dpi: int, size: float, letters: int) -> None:
    """However many dots there are to the inch; and a skewed page's too."""
    for page in (page_of(dpi, size), skewed(page_of(dpi, size), 5)):
        assert sheets.look_at(array_of(page)).letters == pytest.approx(letters, rel=0.15)


def test_nothing_is_seen_where_nothing_is() -> None:
    """No lines, no skew, no scaling; whatever the shape."""
    noise = numpy.random.default_rng(1).integers(0, 255, (300, 300)).astype(numpy.uint8)
    for picture in (
        noise,
        *(numpy.full(shape, 200, numpy.uint8) for shape in ((1, 1), (1, 5000), (5000, 1), (37, 41))),
    ):
        look = sheets.look_at(sheets.lighten(picture))
        assert (look.skew, look.scale) == (0.0, 1.0)
        sheet = sheets.lay_out(picture, look)
        assert len(sheet.gray) == sheet.width * sheet.height == picture.size
        assert sheet.smoother().band(0.1).width == sheet.width


def test_blank_is_what_has_no_letter_on_it() -> None:
    """By what stands out from the paper: gray paper is blank too, and faint print is not."""
    paper = numpy.full((1000, 800), 190, numpy.uint8)
    assert sheets.is_blank(paper)
    assert sheets.is_blank(255 - paper)
    grain = numpy.random.default_rng(2).normal(225, 6, (1000, 800)).astype(numpy.uint8)
    assert sheets.is_blank(grain)
    for letter in (140, 60):
        written = paper.copy()
        written[500:512, 400:410] = letter
        assert not sheets.is_blank(written)
    assert not sheets.is_blank(255 - array_of(page_of()))


@pytest.mark.parametrize("ground", [60, 90, 120, 150, 180, 200])
def test_letters_on_coloured_ground_are_not_blank(ground: int) -> None:
    """As on slides and posters: white ones are there as well as black ones, and read as they stand on paper."""
    page = array_of(page_of())
    for letter in (0, 255) if ground > 64 else (255,):
        picture = numpy.where(page < 128, letter, ground).astype(numpy.uint8)
        assert not sheets.is_blank(picture)
        assert sheets.look_at(sheets.lighten(picture)).letters == pytest.approx(20, rel=0.15)
    assert sheets.is_blank(numpy.full_like(page, ground))


# --- what is made of it ----------------------------------------------------------------------------------------------


def test_letters_are_brought_to_one_size() -> None:
    """Those that fit stay as they are; enlarging has its bounds."""
    scales = {letters: Look(letters=letters, pieces=99, skew=0.0).scale for letters in (0, 2, 10, 16, 20, 24, 30, 60)}
    fitting = {0: 1.0, 2: 3.0, 10: 2.0, 16: 1.0, 20: 1.0, 24: 1.0, 30: 20 / 30, 60: 20 / 60}
    assert scales == fitting
    for dpi in (100, 300):
        picture = array_of(page_of(dpi))
        sheet = sheets.lay_out(picture, sheets.look_at(picture))
        again = sheets.look_at(numpy.frombuffer(sheet.gray, numpy.uint8).reshape(sheet.height, sheet.width))
        assert again.letters == pytest.approx(LETTER_PIXELS, abs=3)


@pytest.mark.parametrize("pixels", [1, 10_000, 1_000_000, 5_000_000, 8_700_000, 15_000_000, 20_000_000, 90_000_000])
@pytest.mark.parametrize("scale", [0.1, 0.7, 1.0, 1.5, 3.0])
def test_no_sheet_is_larger_than_its_bound(scale: float, pixels: int) -> None:
    """What is large already is not enlarged, and what is too large is made to fit."""
    bounded = sheets.fitting(scale, pixels)
    assert pixels * bounded**2 <= max(MAX_SHEET_PIXELS, 1) * 1.0001
    assert bounded <= max(scale, 0.0)
    assert bounded >= min(1.0, scale) or pixels > MAX_SHEET_PIXELS


def test_light_letters_on_dark_become_dark_on_light() -> None:
    """And what is dark on light and evenly lit is left alone: it is the very same picture."""
    page = array_of(page_of())
    assert sheets.lighten(page) is page
    assert (sheets.lighten(255 - page) == page).all()
    photograph = page.copy()
    photograph[: len(page) * 2 // 3] = 10
    assert (sheets.lighten(photograph)[-50:] == photograph[-50:]).all()


def test_uneven_light_is_evened() -> None:
    """Paper is white everywhere, letters stay dark."""
    shadow = array_of(in_a_shadow(page_of()))
    evened = sheets.lighten(shadow)
    assert numpy.percentile(shadow[:, -60:], 50) < 110
    assert numpy.percentile(evened[:, -60:], 50) > 240
    assert sheets.look_at(evened).letters == pytest.approx(20, abs=2)


# --- pages that need it, read ----------------------------------------------------------------------------------------

_PAGES = {
    "100 dpi": lambda: page_of(100),
    "72 dpi": lambda: page_of(72, 12),
    "300 dpi": lambda: page_of(300, font="tiro"),
    "large print": lambda: page_of(200, 20),
    "noisy": lambda: noisy(page_of(110)),
    "skewed up": lambda: skewed(page_of(), 5),
    "skewed down": lambda: noisy(skewed(page_of(), -1.5)),
    "a quarter": lambda: page_of().transpose(Image.Transpose.ROTATE_90),
    "upside down": lambda: noisy(page_of()).transpose(Image.Transpose.ROTATE_180),
    "three quarters": lambda: page_of().transpose(Image.Transpose.ROTATE_270),
    "inverted": lambda: page_of().point(lambda gray: 255 - gray),
    "on a dark table": lambda: on_a_table(page_of(300)),
    "below a headline": lambda: below_a_headline(page_of()),
    "in a shadow": lambda: in_a_shadow(page_of()),
}


class Reader:
    """A Place with an `ocr` stage of one backend at it."""

    def __init__(self, folder: Path, backend: str) -> None:
        self.inbox = self.outbox = folder
        self.stage = ocr.open_stage({"languages": ["eng"], "backend": backend})

    def progress(self, done: int, total: int) -> None:
        """Nobody listens."""

    def memory_left(self) -> int:
        return sys.maxsize

    def read(self, data: bytes, media_type: str = "image/png") -> tuple[str, float]:
        (self.inbox / "1").write_bytes(data)
        self.stage.run({"file": "1", "media_type": media_type, "page": 1, "prefix": "p"}, self)
        page = ocr.json.loads((self.outbox / "p.page.json").read_bytes())
        return page["text"], page["confidence"]


@pytest.fixture(scope="module", params=["tesserocr", "pytesseract"])
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    pytest.importorskip(request.param)
    if request.param == "pytesseract" and shutil.which("tesseract") is None:
        pytest.skip("no tesseract program")
    return Reader(tmp_path_factory.mktemp("reader"), request.param)


def found(text: str) -> float:
    """The share of the words that stand in a text, in whatever order."""
    wanted, there = re.findall(r"\w+", WORDS.lower()), re.findall(r"\w+", text.lower())
    return sum(word in there for word in wanted) / len(wanted)


@pytest.mark.parametrize("name", list(_PAGES))
def test_pages_of_all_kinds_are_read(name: str, reader: Reader) -> None:
    """Small, large, noisy, skewed, turned, inverted, in a shadow; by both backends alike, in the order of the page."""
    text, confidence = reader.read(encoded(_PAGES[name](), "PNG"))
    assert found(text) >= ENOUGH
    assert text.find("night") < text.find("Nobody") < text.find("bell")
    assert confidence > 80


def test_small_print_in_a_pdf_is_rendered_finer(reader: Reader) -> None:
    """At the usual resolution letters of 4 points are 8 pixels high; in the file they are still whole."""
    pdf = pymupdf.open()
    page = pdf.new_page(width=300, height=120)
    page.insert_image(page.rect, stream=encoded(page_of(600, 4).crop((0, 0, 2500, 1000)), "PNG"))
    assert found(reader.read(pdf.tobytes(), "application/pdf")[0]) >= ENOUGH


# --- the second try --------------------------------------------------------------------------------------------------


class Scripted:
    """A recogniser that gives the readings that it was given, in order."""

    def __init__(self, *readings: Reading) -> None:
        self.readings = list(readings)
        self.sheets: list[sheets.Sheet] = []

    def recognise(self, sheet: sheets.Sheet) -> Reading:
        self.sheets.append(sheet)
        return self.readings.pop(0)


def reading(text: str, confidence: float, weight: float = 100, words: int = 100) -> Reading:
    return Reading(text=text, confidence=confidence, words=words, weight=weight)


def read_by(scripted: Scripted, tmp_path: Path) -> str:
    place = Reader(tmp_path, "tesserocr")
    place.stage._recogniser = scripted
    text = place.read(encoded(page_of(), "PNG"))[0]
    assert not scripted.readings, "it was read less often than expected"
    return text


def test_a_good_page_is_read_once(tmp_path: Path) -> None:
    """Nearly all pages are."""
    assert read_by(Scripted(reading("good", 88)), tmp_path) == "good"


@pytest.mark.parametrize(("weight", "kept"), [(101, "second"), (99, "first")])
def test_a_poor_page_is_read_once_more_and_the_better_reading_stays(weight: float, kept: str, tmp_path: Path) -> None:
    """With its strokes run together; never worse than before."""
    scripted = Scripted(reading("first", 79), reading("second", 99, weight))
    assert read_by(scripted, tmp_path) == kept
    first, second = scripted.sheets
    assert (first.width, first.height) == (second.width, second.height)
    assert first.gray != second.gray


def test_a_page_whose_lines_were_lost_is_poor_however_sure(tmp_path: Path) -> None:
    """Tesseract says nothing of the lines that it did not find."""
    assert read_by(Scripted(reading("few", 95, 10, words=2), reading("many", 90, 200)), tmp_path) == "many"


def test_a_second_look_is_nearer() -> None:
    """Never enlarged, and only where tall things had made the first look reduce the page."""
    for letters, lower, nearer in (
        (99, 30, 30),
        (99, 5, 20),
        (99, 60, None),
        (99, 0, None),
        (20, 5, None),
        (0, 0, None),
    ):
        second = Look(letters=letters, pieces=9, skew=1.0, lower=lower).nearer(False)
        assert second == (nearer and Look(letters=nearer, pieces=9, skew=1.0, lower=lower))
    for letters, natural in ((99, True), (40, True), (30, False), (20, False)):
        second = Look(letters=letters, pieces=9, skew=0.0, lower=letters).nearer(True)
        assert (second is not None and second.scale == 1.0) == natural


def test_letters_in_boxes_are_read(reader: Reader) -> None:
    """Messages on a telephone: all that is seen at first are the boxes."""
    messages = ("Are you coming tonight?", "Yes, around eight", "Bring the red folder", "Sure, no problem")
    screen = Image.new("L", (720, 900), 255)
    draw, font = ImageDraw.Draw(screen), ImageFont.load_default(28)
    for row, (message, ground) in enumerate(zip(messages, (229, 101, 229, 139), strict=True)):
        left, top = 300 if row % 2 else 40, 60 + 140 * row
        draw.rounded_rectangle((left, top, left + 380, top + 80), 30, fill=ground)
        draw.text((left + 25, top + 22), message, font=font, fill=255 if row % 2 else 0)
    text, _ = reader.read(encoded(screen, "PNG"))
    assert [message for message in messages if message not in text] == []


def test_a_page_that_cannot_be_read_is_turned(tmp_path: Path) -> None:
    """A band of it is tried upside down, then on its sides; what was never readable is only smoothed."""
    bad = reading("bad", 35, -50)
    turned = Scripted(bad, bad, reading("a band", 90), reading("turned", 95))
    assert read_by(turned, tmp_path) == "turned"
    whole, upside_down, side, last = turned.sheets
    assert (last.width, last.height) == (whole.height, whole.width)
    assert upside_down.width == whole.width
    assert side.height < 0.2 * last.height
    assert read_by(Scripted(bad, bad, bad, bad, reading("smoothed", 40, -20)), tmp_path) == "smoothed"


def test_the_weight_of_a_reading_grows_with_sure_letters_and_falls_with_doubtful_ones() -> None:
    """Signs that are neither letters nor digits count nothing."""
    weigh = recognisers._reading
    assert weigh("", [("total", 90.0)]).weight > weigh("", [("total", 60.0)]).weight > 0
    assert weigh("", [("total", 90.0), ("~~|", 99.0)]).weight == weigh("", [("total", 90.0)]).weight
    assert weigh("", [("total", 90.0), ("xq", 10.0)]).weight < weigh("", [("total", 90.0)]).weight
