"""Pictures: pages that wait for OCR, a size that is looked at first, and a check that they are whole."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from engine.document import Method
from engine.reasons import Reason
from tests.unit.extraction import Desk, drawing, encoded, numbers


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"])
def test_a_picture_is_one_page_that_waits_for_ocr(desk: Desk, file_format: str) -> None:
    """Nothing is recognised yet."""
    document = desk.read(encoded(drawing("words"), file_format), f"scan.{file_format.lower()}")
    assert document.media_type == f"image/{file_format.lower()}"
    assert [(page.number, page.text, page.method) for page in document.pages] == [(1, "", Method.NONE)]
    assert numbers(document.pages) == [1]
    assert document.facts["size"] == "900 x 200 pixels"
    # Also of a JPEG, of which only an eighth is decoded here.
    assert document.pages[0].pixels == 900 * 200
    assert document.title == f"scan.{file_format.lower()}"


def test_every_frame_of_a_tiff_is_a_page(desk: Desk) -> None:
    """A fax, a scanned book."""
    frames = [drawing(f"page {number}") for number in range(3)]
    data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    document = desk.read(data, "fax.tif")
    assert numbers(document.pages) == [1, 2, 3]
    assert desk.heard == [(1, 3), (2, 3), (3, 3)]


def test_an_animation_is_its_first_frame(desk: Desk) -> None:
    """Nobody reads the others."""
    data = encoded(drawing("a"), "GIF", save_all=True, append_images=[drawing("b")])
    assert numbers(desk.read(data, "a.gif").pages) == [1]


@pytest.mark.parametrize("size", [(16, 16), (400, 31), (1, 1)])
def test_icons_are_not_recognised(desk: Desk, size: tuple[int, int]) -> None:
    """Nothing legible fits into them."""
    document = desk.read(encoded(Image.new("RGB", size), "PNG"), "dot.png")
    assert len(document.pages) == 1
    assert numbers(document.pages) == []


def test_without_ocr_a_note_says_that_nothing_was_read(tmp_path: Path) -> None:
    """The picture is still found by its name."""
    document = Desk(tmp_path, {"ocr": False}).read(encoded(drawing("x"), "PNG"), "x.png")
    assert numbers(document.pages) == []
    assert document.notes == ("1 pages were not read: OCR is off",)


def test_a_photograph_says_when_it_was_taken(desk: Desk) -> None:
    """From EXIF, without a zone."""
    image = drawing("x")
    exif = image.getexif()
    exif[0x0132] = "2026:03:01 09:30:00"
    assert desk.read(encoded(image, "JPEG", exif=exif), "x.jpg").facts["date"] == "2026-03-01T09:30:00"


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_a_picture_that_was_cut_off_is_damaged(desk: Desk, file_format: str) -> None:
    """Half of a letter would pass for the whole of it."""
    noisy = Image.effect_noise((300, 300), 80)
    data = encoded(noisy, file_format)
    desk.read(data, "whole")
    assert desk.refusal(data[: len(data) * 2 // 3], "half")[0] is Reason.DAMAGED


@pytest.mark.parametrize("missing", [1, 2, 12, 200])
def test_a_jpeg_that_ends_a_little_early_is_read_in_part(desk: Desk, missing: int) -> None:
    """A download that broke off: what is there goes to OCR, and a note says so; the next picture is judged as ever."""
    data = encoded(Image.effect_noise((300, 900), 80), "JPEG")
    document = desk.read(data[:-missing], "cut.jpg")
    assert numbers(document.pages) == [1]
    assert document.notes[0].startswith("partial: the picture ends early, ")
    assert document.facts["size"] == "300 x 900 pixels"
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert not desk.read(data, "whole.jpg").notes


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6])
def test_a_jpeg_of_which_less_is_there_is_damaged(desk: Desk, share: float) -> None:
    """Nobody would call it read."""
    data = encoded(Image.effect_noise((300, 900), 80), "JPEG")
    assert desk.refusal(data[: int(len(data) * share)], "cut.jpg")[0] is Reason.DAMAGED


def test_a_progressive_jpeg_that_ends_early_is_damaged(desk: Desk) -> None:
    """All of it is there from its first scan on, and too coarse to be read."""
    data = encoded(Image.effect_noise((300, 900), 80), "JPEG", progressive=True)
    assert desk.refusal(data[:-200], "cut.jpg")[0] is Reason.DAMAGED


def test_a_header_without_a_picture_is_damaged(desk: Desk) -> None:
    """The mark alone is a claim."""
    assert desk.refusal(b"\x89PNG\r\n\x1a\n" + bytes(20), "a.png")[0] is Reason.DAMAGED


def test_too_many_pixels_are_a_bomb_before_any_is_decoded(desk: Desk) -> None:
    """A PNG of a few hundred bytes that claims 900 million pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )
    reason, detail = desk.refusal(data, "a.png")
    assert reason is Reason.BOMB
    assert "30000 x 30000" in detail


def test_too_many_frames_are_a_bomb(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted before they are decoded."""
    from engine.workers import read_image

    monkeypatch.setattr(read_image, "MAX_FRAMES", 2)
    data = encoded(drawing("a"), "TIFF", save_all=True, append_images=[drawing("b"), drawing("c")])
    assert desk.refusal(data, "a.tif")[0] is Reason.BOMB
