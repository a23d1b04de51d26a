"""Pictures: pages that wait for OCR, a size that is looked at first, and a check that they are whole."""

from __future__ import annotations

import base64
import importlib.util
import random
import re
import struct
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageFile, features

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


def test_a_thumbnail_in_a_tiff_is_not_read_again(desk: Desk) -> None:
    """It says that it is a small copy; the pages around it keep their numbers."""
    frames = [drawing("one"), drawing("one").reduce(4), drawing("two")]
    frames[1].encoderinfo = {"tiffinfo": {254: 1}}
    document = desk.read(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]), "a.tif")
    assert numbers(document.pages) == [1, 3]
    assert document.notes == ("frame 2 is a small copy of another",)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_its_first_frame(desk: Desk, file_format: str) -> None:
    """And says so; a picture that stands still says nothing, nor is the rest of an animation looked at."""
    data = encoded(drawing("a"), file_format, save_all=True, append_images=[drawing("b")])
    document = desk.read(data, "a")
    assert numbers(document.pages) == [1]
    assert document.notes == ("an animation: only its first picture is read",)
    assert not desk.read(encoded(drawing("a"), file_format), "a").notes
    if file_format == "GIF":
        assert numbers(desk.read(data[:-400], "a").pages) == [1]


@pytest.mark.parametrize("size", [(16, 16), (400, 31), (1, 1)])
def test_icons_are_not_recognised(desk: Desk, size: tuple[int, int]) -> None:
    """Nothing legible fits into them."""
    document = desk.read(encoded(Image.new("RGB", size), "PNG"), "dot.png")
    assert len(document.pages) == 1
    assert numbers(document.pages) == []
    assert document.notes == (f"the picture is too small to hold words: {size[0]} x {size[1]} pixels",)


def test_without_ocr_a_note_says_that_nothing_was_read(tmp_path: Path) -> None:
    """The picture is still found by its name."""
    document = Desk(tmp_path, {"ocr": False}).read(encoded(drawing("x"), "PNG"), "x.png")
    assert numbers(document.pages) == []
    assert document.notes == ("1 pages were not read: OCR is off",)


@pytest.mark.parametrize(
    "compression",
    ["raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "jpeg", "group3", "group4", "tiff_ccitt"],
)
def test_a_tiff_is_read_however_it_is_compressed(desk: Desk, compression: str) -> None:
    """As faxes, scanners and cameras write it."""
    mode = "1" if compression.startswith(("group", "tiff_ccitt")) else "RGB"
    data = encoded(drawing("words").convert(mode), "TIFF", compression=compression)
    assert numbers(desk.read(data, "a.tif").pages) == [1]
    assert desk.refusal(data[: len(data) // 2], "half.tif")[0] is Reason.DAMAGED


@pytest.mark.parametrize(("mode", "mark"), [("1", b"P4"), ("L", b"P5"), ("RGB", b"P6")])
def test_the_raw_pictures_of_scanners_are_read(desk: Desk, mode: str, mark: bytes) -> None:
    """A text that begins as one does is none."""
    data = encoded(drawing("words").convert(mode), "PPM")
    assert data.startswith(mark)
    document = desk.read(data, "scan.pnm")
    assert (document.media_type, numbers(document.pages), document.notes) == ("image/x-portable-anymap", [1], ())
    assert desk.refusal(data[:-2_000], "scan.pnm")[0] is Reason.DAMAGED
    assert desk.read(mark + b" is the name of a road.\n", "a.txt").media_type == "text/plain"


def test_an_avif_is_read_where_pillow_reads_it(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """From 11.3 on; an older one is named as what is missing."""
    if features.check("avif"):
        data = encoded(drawing("words", mode="RGB"), "AVIF")
        document = desk.read(data, "a.avif")
        assert (document.media_type, numbers(document.pages)) == ("image/avif", [1])
        assert desk.refusal(data[: len(data) // 2], "half.avif")[0] is Reason.DAMAGED
        desk.memory_bytes = 10_000_000
        assert desk.refusal(data, "a.avif")[0] is Reason.OUT_OF_MEMORY
    monkeypatch.setattr(features, "check", lambda name: False)
    assert desk.refusal(b"\0\0\0\x1cftypavif\0\0\0\0mif1miaf", "a.avif") == (
        Reason.UNSUPPORTED_TYPE,
        "image/avif: it is read with Pillow 11.3 or later",
    )


#: 64 x 40 pixels, written by libheif.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWl4AAAAAG1pZjFoZWl4bWlhZgAAAXVtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAA"
    "AERAAAEAAQAAAAABmQABAAAAAAAAACQAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA9WlwcnAAAADV"
    "aXBjbwAAAHBodmNDAQQIAAAAn/gAAAAAHvAA/Pz4+AAADwNgAAEAF0ABDAH//wQIAAADAJ/4AAADAAAeugJAYQABACVCAQEECAAAAwCf+AAAAwAA"
    "HsCCBBZbq5Ka5sCAAAAMgAAAAwCEYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAA"
    "AAABAAAAKAAAAAEAAAAAAAAAAv///+gAAAACAAAADnBpeGkAAAAAAQgAAAAYaXBtYQAAAAAAAAABAAEFgQIDBYQAAAAsbWRhdAAAACAoAa4WwO7T"
    "pWHvj/PuvIS2erl+/qneGqFqdbAAziUtwA=="
)


def test_a_heic_is_read_where_its_package_is_there(desk: Desk) -> None:
    """Either of two."""
    if not any(importlib.util.find_spec(package) for package in ("pi_heif", "pillow_heif")):
        pytest.skip("neither pi-heif nor pillow-heif is installed")
    document = desk.read(HEIC, "photo.heic")
    assert (document.media_type, numbers(document.pages)) == ("image/heic", [1])
    assert document.facts["size"] == "64 x 40 pixels"
    assert desk.refusal(HEIC[:-30], "photo.heic")[0] is Reason.DAMAGED


def test_without_its_package_a_heic_says_which_one_it_is(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing, and how to have it."""
    for package in ("pi_heif", "pillow_heif"):
        monkeypatch.setitem(sys.modules, package, None)
    assert desk.refusal(HEIC, "photo.heic") == (
        Reason.UNSUPPORTED_TYPE,
        "image/heic: it is read where the package pi-heif is installed",
    )


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_without_ocr_a_png_is_checked_by_its_sums(tmp_path: Path, share: float) -> None:
    """Nobody will look at the pixels: they are not unpacked, and what is cut off or changed is told all the same."""
    desk = Desk(tmp_path, {"ocr": False})
    data = bytearray(encoded(Image.effect_noise((300, 300), 80), "PNG"))
    desk.memory_bytes = 9_000_000  # not enough for pixels
    assert desk.read(bytes(data), "a.png").pages
    at = int(len(data) * share)
    assert desk.refusal(bytes(data[:at]), "a.png")[0] is Reason.DAMAGED
    data[at] ^= 1
    assert desk.refusal(bytes(data), "a.png")[0] is Reason.DAMAGED


@pytest.mark.parametrize("progressive", [False, True])
def test_without_ocr_a_jpeg_is_whole_when_its_end_is_there(tmp_path: Path, progressive: bool) -> None:
    """It is decoded only where it is not, and what is missing is told as ever."""
    desk = Desk(tmp_path, {"ocr": False})
    data = encoded(Image.effect_noise((300, 900), 80), "JPEG", progressive=progressive)
    off = "1 pages were not read: OCR is off"
    assert desk.read(data + b"\0" * 100, "a.jpg").notes == (off,)
    assert desk.read(data[:-200], "a.jpg").notes[0].startswith("partial: the picture ends early, ")
    assert desk.refusal(data[: len(data) // 5], "a.jpg")[0] is Reason.DAMAGED


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
    noise = Image.frombytes("L", (300, 900), random.Random(5).randbytes(300 * 900))
    data = encoded(noise, "JPEG")
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


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_progressive_jpeg_that_ends_early_is_read_unless_it_is_too_coarse(desk: Desk, mode: str) -> None:
    """All rows are there from its first scan on: it can be read when all of brightness but its last bits is there."""
    data = encoded(drawing("heron", mode=mode), "JPEG", progressive=True)
    scans = [match.start() for match in re.finditer(b"\xff\xda", data)]
    legible = 5 if mode == "RGB" else 3  # libjpeg's own order of scans
    thumbnail = b"\xff\xe1\x00\x0e\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\xff\xda"
    for number, end in enumerate(scans[1:], start=1):
        cut = data[:2] + thumbnail + data[2 : end + 20]
        if number < legible:
            assert desk.refusal(cut, "cut.jpg")[0] is Reason.DAMAGED
        else:
            document = desk.read(cut, "cut.jpg")
            assert document.notes == ("partial: the picture ends early, it is coarser than it was",)
            assert numbers(document.pages) == [1]
    assert not desk.read(data, "whole.jpg").notes


@pytest.mark.parametrize(
    ("data", "blocks"),
    [
        (b"\xff\xd8" + b"\xff\xe1\x00\x0cExif\0\0MM\0*" * 6_000, "5000"),
        (b"GIF89a\x01\0\x01\0\0\0\0!\xfe" + b"\x01a" * 6_000 + b"\0", "5000"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0tEXt\0\0\0\0" * 6_000, "5000"),
        (b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0IDAT\0\0\0\0" * 100_001, "100000"),
    ],
    ids=["jpeg", "gif", "png", "png pixels"],
)
def test_blocks_are_counted_before_pillow_puts_them_together(desk: Desk, data: bytes, blocks: str) -> None:
    """It copies what there is for each: 200,000 pieces of EXIF data took ten seconds."""
    assert desk.refusal(data, "a") == (Reason.BOMB, f"a picture of more than {blocks} blocks")


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
    from engine.workers import image_heads

    monkeypatch.setattr(image_heads, "MAX_FRAMES", 2)
    data = encoded(drawing("a"), "TIFF", save_all=True, append_images=[drawing("b"), drawing("c")])
    assert desk.refusal(data, "a.tif")[0] is Reason.BOMB
