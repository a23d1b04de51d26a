"""The stage `ocr`: pages of PDFs and pictures, one by one; its backends; and the data that it needs."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pymupdf
import pytest
from PIL import Image

from engine.document import Method, Page
from engine.errors import MalformedMessage
from engine.ports import StageFailed
from engine.reasons import Reason
from engine.workers import ocr, reading
from engine.workers.tessdata import find_tessdata, tessdata_folders
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

    def put(self, data: bytes) -> None:
        (self.inbox / "1").write_bytes(data)

    def page(self, number: int = 1, media_type: str = "application/pdf") -> Page:
        result: Mapping[str, Any] = self.stage.run(
            {"file": "1", "media_type": media_type, "page": number, "prefix": f"p{number}"}, self
        )
        assert result == {"page": f"p{number}.page.json"}
        return Page.from_json(json.loads((self.outbox / f"p{number}.page.json").read_bytes()))


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
    monkeypatch.setattr(ocr._Tesserocr, "recognise", lambda self, sheet: pytest.fail("a blank page was recognised"))
    reader.put(encoded(Image.new("L", (800, 1000), shade), "PNG"))
    page = reader.page(1, "image/png")
    assert (page.text, page.method) == ("", Method.OCR)


def test_a_giant_page_is_rendered_within_bounds(reader: Reader) -> None:
    """200 inches on a side would be 1.6 billion pixels."""
    pdf = pymupdf.open()
    pdf.new_page(width=14_400, height=14_400)
    reader.put(pdf.tobytes())
    assert reader.page().text == ""
    assert ocr._fitting_dpi(200, 200) ** 2 * 200 * 200 <= reading.MAX_SHEET_PIXELS + 1
    assert ocr._fitting_dpi(8.3, 11.7) == reading.PAGE_DPI


def test_pictures_are_scaled_to_what_letters_need() -> None:
    """Fine ones down, coarse ones up, those that say nothing not at all, and none beyond the bound."""
    assert ocr._fitting_factor(1_000_000, 0) == 1.0
    assert ocr._fitting_factor(8_000_000, 400) == 0.5
    assert ocr._fitting_factor(1_000_000, 100) == 2.0
    assert ocr._fitting_factor(12_000_000, 72) == 1.0
    assert ocr._fitting_factor(80_000_000, 0) == 0.5


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


def test_data_is_found_where_all_languages_are(tmp_path: Path) -> None:
    """Tesseract reads from one folder: the first that has them all."""
    one, both = tmp_path / "one", tmp_path / "both"
    for folder, languages in ((one, ["eng"]), (both, ["eng", "deu"])):
        folder.mkdir()
        for language in languages:
            (folder / f"{language}.traineddata").touch()
    assert find_tessdata(["eng"], [one, both]) == one
    assert find_tessdata(["eng", "deu"], [one, both]) == both
    for languages, said in ((["eng", "fra"], "no data for fra"), ([], "(none)"), (["../eng"], "../eng")):
        with pytest.raises(StageFailed, match=said.replace("(", r"\(").replace(")", r"\)")) as caught:
            find_tessdata(languages, [one, both])
        assert caught.value.failure.reason is Reason.OCR_LANGUAGE_MISSING


def test_data_in_two_folders_is_of_no_use(tmp_path: Path) -> None:
    """And the message says so, as each language for itself is there."""
    for language in ("eng", "deu"):
        (tmp_path / language).mkdir()
        (tmp_path / language / f"{language}.traineddata").touch()
    with pytest.raises(StageFailed, match="no single folder has eng, deu"):
        find_tessdata(["eng", "deu"], [tmp_path / "eng", tmp_path / "deu"])


def test_the_environment_comes_first(tmp_path: Path) -> None:
    """TESSDATA_PREFIX may name the folder or the one above."""
    (tmp_path / "tessdata").mkdir()
    assert tessdata_folders({"TESSDATA_PREFIX": str(tmp_path)})[:2] == [tmp_path, tmp_path / "tessdata"]


# --- the program -----------------------------------------------------------------------------------------------------

PROGRAM = """#!{python}
import os, sys
if "--list-langs" in sys.argv:
    print("List of available languages (1):\\neng")
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


def test_the_program_gets_ppm_and_one_thread(tmp_path: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    """PNG costs seven times as much to write, and threads fight over the cores: a stand-in tells what it was given."""
    pytest.importorskip("pytesseract")
    program = tmp_path / "bin" / "tesseract"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
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
    monkeypatch.setattr(ocr, "_Pytesseract", lambda languages: ("the program", languages))
    assert ocr._open_recogniser(["eng"], "auto") == ("the program", ["eng"])
    with pytest.raises(StageFailed, match="tesserocr cannot be loaded"):
        ocr._open_recogniser(["eng"], "tesserocr")
