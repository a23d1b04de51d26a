"""Files that are small and ask for more than they may have: memory, disk, time or room for entries.

Rule: made, not kept. Each is written within a second and has at most some megabytes; what is larger is mostly one byte
repeated. `BOMBS` says of each how it may end: "indexed" where the reader can bound it, else a reason of the catalogue.

Run as a program (`scripts/bombs`) it indexes them and says how each ended, and what it took.
"""

from __future__ import annotations

import base64
import bz2
import io
import random
import struct
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

Pieces = Iterable[bytes]

MB: Final = 1_000_000
READ: Final = "indexed"
#: What memory and time bound, and nothing else can: which of them comes first depends on the machine.
STOPPED: Final = ("out_of_memory", "deadline", "no_progress", "bomb")


# --- PDF -------------------------------------------------------------------------------------------------------------


def pdf(objects: list[bytes]) -> bytes:
    """Objects numbered from 1; the first is the catalog."""
    out, offsets = bytearray(b"%PDF-1.7\n"), []
    for number, data in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n" % number + data + b"\nendobj\n"
    at = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (len(objects) + 1, at)
    return bytes(out)


def stream(data: bytes, entries: bytes = b"") -> bytes:
    """A stream as it stands; `entries` name its filters and what else its dictionary has."""
    return b"<<%b/Length %d>>stream\n" % (entries, len(data)) + data + b"\nendstream"


def deflated(pieces: Pieces, entries: bytes = b"") -> bytes:
    """A stream of the filter FlateDecode."""
    return stream(squeezed(pieces), entries + b"/Filter/FlateDecode")


def squeezed(pieces: Pieces) -> bytes:
    """zlib's best, which is 1,032 to 1."""
    packer = zlib.compressobj(9)
    return b"".join([*map(packer.compress, pieces), packer.flush()])


def page_pdf(content: bytes, *more: bytes, resources: bytes = b"", box: bytes = b"0 0 612 792") -> bytes:
    """A PDF of one page: catalog, pages, page, content, then objects numbered from 5."""
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[%b]/Contents 4 0 R/Resources<<%b>>>>" % (box, resources)
    pages = b"<</Type/Pages/Kids[3 0 R]/Count 1>>"
    return pdf([b"<</Type/Catalog/Pages 2 0 R>>", pages, page, content, *more])


FONT: Final = b"/Font<</F 5 0 R>>"
HELVETICA: Final = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"


def times(piece: bytes, count: int) -> Iterator[bytes]:
    """A piece so many times, in blocks."""
    block, many = piece * max(1, 100_000 // len(piece)), max(1, 100_000 // len(piece))
    for _ in range(count // many):
        yield block
    yield piece * (count % many)


def crowded(letters: int, *, pages: int = 1) -> bytes:
    """So many letters on the first page, and a word on the second."""
    words = times(b"BT /F .1 Tf 9 700 Td (abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz)Tj ET ", letters // 52)
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents %d 0 R/Resources<</Font<</F 3 0 R>>>>>>"
    kids = b"5 0 R 6 0 R" if pages == 2 else b"5 0 R"
    return pdf(
        [
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[%b]/Count %d>>" % (kids, pages),
            HELVETICA,
            deflated(words),
            page % 4,
            page % 7,
            stream(b"BT /F 9 Tf 9 700 Td (heron)Tj ET"),
        ]
    )


def forms(levels: int, width: int) -> bytes:
    """Form XObjects each of which paints the next so many times."""
    made = []
    for level in range(levels):
        last = level == levels - 1
        inner = b"" if last else b"/Resources<</XObject<</X %d 0 R>>>>" % (6 + level)
        content = b"BT /F 9 Tf (a) Tj ET" if last else b"/X Do " * width
        if last:
            inner = b"/Resources<</Font<</F %d 0 R>>>>" % (5 + levels)
        made.append(stream(content, b"/Type/XObject/Subtype/Form/BBox[0 0 600 700]" + inner))
    return page_pdf(stream(b"/X Do"), *made, HELVETICA, resources=b"/XObject<</X 5 0 R>>")


def page_tree(levels: int, width: int) -> bytes:
    """A tree of pages whose nodes are the same ones, so many times."""
    total = width**levels
    nodes = []
    for level in range(levels):
        kids = b"%d 0 R " % (3 + level) * width
        nodes.append(b"<</Type/Pages/Kids[%b]/Count %d>>" % (kids, total // width**level))
    leaf = b"<</Type/Page/Parent %d 0 R/MediaBox[0 0 99 99]>>" % (1 + levels)
    return pdf([b"<</Type/Catalog/Pages 2 0 R>>", *nodes, leaf])


def flat_pages(count: int) -> bytes:
    """One node whose kids are the same page, so many times."""
    kids = b"3 0 R " * count
    node = b"<</Type/Pages/Kids[%b]/Count %d>>" % (kids, count)
    return pdf([b"<</Type/Catalog/Pages 2 0 R>>", node, b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]>>"])


def painted(width: int, height: int, entries: bytes, data: Pieces) -> bytes:
    """A page that is one picture."""
    head = b"/Type/XObject/Subtype/Image/Width %d/Height %d" % (width, height) + entries
    return page_pdf(stream(b"q 612 0 0 792 0 0 cm /I Do Q"), deflated(data, head), resources=b"/XObject<</I 5 0 R>>")


def jpeg_2000(width: int, height: int) -> bytes:
    """A page that is one picture in JPEG 2000, of which there is hardly more than its size (ITU T.800, A.5 to A.6)."""
    size = struct.pack(">HIIIIIIIIH3B", 0, width, height, 0, 0, width, height, 0, 0, 1, 7, 1, 1)
    coding, quantisation = struct.pack(">BBHBBBBBB", 0, 0, 1, 0, 0, 4, 4, 0, 1), b"\x20\x40"
    marks = ((b"\xff\x51", size), (b"\xff\x52", coding), (b"\xff\x5c", quantisation))
    head = b"".join(mark + struct.pack(">H", len(data) + 2) + data for mark, data in marks)
    tile = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 0, 0, 1) + b"\xff\x93" + bytes(20)
    picture = b"\xff\x4f" + head + tile + b"\xff\xd9"
    entries = b"/Type/XObject/Subtype/Image/Width 10/Height 10/Filter/JPXDecode"
    content = stream(b"q 612 0 0 792 0 0 cm /I Do Q")
    return page_pdf(content, stream(picture, entries), resources=b"/XObject<</I 5 0 R>>")


def attachments(count: int, size: int) -> bytes:
    """One embedded file under so many names."""
    names = b"".join(b"(%06d)6 0 R" % number for number in range(count))
    return pdf(
        [
            b"<</Type/Catalog/Pages 2 0 R/Names<</EmbeddedFiles 4 0 R>>>>",
            b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]>>",
            b"<</Names[%b]>>" % names,
            deflated(times(b"The grass was high. \n", size // 21), b"/Type/EmbeddedFile"),
            b"<</Type/Filespec/F(notes.txt)/UF(notes.txt)/EF<</F 5 0 R>>>>",
        ]
    )


def annotated(count: int) -> bytes:
    """A page with so many comments."""
    comment = b"<</Type/Annot/Subtype/Text/Rect[0 0 9 9]/Contents(x)>>"
    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Annots[%b]>>" % (b"4 0 R " * count)
    return pdf([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>", page, comment])


def twice_deflated(size: int) -> bytes:
    """A content stream deflated three times over."""
    content = squeezed([squeezed([squeezed(times(b"q Q ", size // 4))])])
    filters = b"/Filter[/FlateDecode/FlateDecode/FlateDecode]"
    return page_pdf(stream(content, filters))


def object_stream(count: int) -> bytes:
    """An object stream that says to hold so many objects."""
    claim = stream(b"1 0 ", b"/Type/ObjStm/N %d/First 4" % count)
    return pdf([b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>", b"<</Type/Page>>", claim])


def wide_xref(size: int) -> bytes:
    """A cross-reference stream for so many objects, all of them free."""
    out = bytearray(b"%PDF-1.7\n")
    offsets = []
    for number, data in enumerate(
        (
            b"<</Type/Catalog/Pages 2 0 R>>",
            b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]>>",
        ),
        start=1,
    ):
        offsets.append(len(out))
        out += b"%d 0 obj\n" % number + data + b"\nendobj\n"
    rows = [b"\0\0\0\0", *(b"\1" + struct.pack(">H", offset) + b"\0" for offset in offsets)]
    at = len(out)
    table = deflated([*rows, *times(b"\0\0\0\0", size - 4)], b"/Type/XRef/W[1 2 1]/Root 1 0 R/Size %d" % size)
    return bytes(out) + b"4 0 obj\n" + table + b"\nendobj\nstartxref\n%d\n%%%%EOF" % at


# --- ZIP containers --------------------------------------------------------------------------------------------------

WORD: Final = b'<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>'
WORD_END: Final = b"</w:body></w:document>"
TYPES: Final = b'<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>'


def packed(entries: Iterable[tuple[str, Pieces]], *, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A ZIP file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method, compresslevel=9) as archive:
        for name, pieces in entries:
            with archive.open(name, "w", force_zip64=True) as entry:
                for piece in pieces:
                    entry.write(piece)
    return out.getvalue()


def docx(body: Pieces, *more: tuple[str, Pieces], head: bytes = b"") -> bytes:
    """A DOCX with that body."""
    document = ("word/document.xml", [head + WORD, *body, WORD_END])
    return packed([("[Content_Types].xml", [TYPES]), document, *more])


def many_names(kinds: Sequence[str], name: str, count: int, part: Pieces) -> bytes:
    """A DOCX that points to one part so many times for each kind of relation, in ever other capitals: names of parts
    are compared without regard to them."""
    names = [
        "".join(letter.upper() if number >> place & 1 else letter for place, letter in enumerate(name))
        for number in range(count)
    ]
    relations = (f'<Relationship Type="x/{kind}" Target="{each}"/>'.encode() for kind in kinds for each in names)
    space = b'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    listed = ("word/_rels/document.xml.rels", [space, *relations, b"</Relationships>"])
    return docx([b"<w:p/>"], (f"word/{name}", part), listed)


def many_entries(count: int, name: bytes = b"") -> bytes:
    """A ZIP file that is hardly more than its directory: so many entries, all of them one and the same."""
    inside = b"PK\x03\x04" + struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0) + name
    row = struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0)
    directory = (b"PK\x01\x02" + row + name) * count
    end = struct.pack("<HHHHIIH", 0, 0, count & 0xFFFF, count & 0xFFFF, len(directory), len(inside), 0)
    return inside + directory + b"PK\x05\x06" + end


def understated(megabytes: int) -> bytes:
    """A DOCX whose body is bzip2's, of so many MB, and whose directory says that it has one byte."""
    packer = bz2.BZ2Compressor(9)
    body = b"".join([*(packer.compress(b" " * MB) for _ in range(megabytes)), packer.flush()])
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("[Content_Types].xml", TYPES)
        archive.writestr("word/document.xml", body)
        entry = archive.getinfo("word/document.xml")
        entry.compress_type, entry.file_size = zipfile.ZIP_BZIP2, 1
    return out.getvalue()


def incompressible(ratio: int) -> bytes:
    """XML that deflate makes about so many times smaller: a comment of noise, and a thousand times its length."""
    noise = base64.b64encode(random.Random(ratio).randbytes(3_000))
    return b"<!--" + noise + b"-->" + b" " * (4_000 * ratio)


def quoted_dtd(levels: int, width: int) -> bytes:
    """Entities of which each is so many of the one before."""
    names = [f"e{level}" for level in range(levels)]
    rows = [f'<!ENTITY {names[0]} "ha ha ha ha">']
    rows += [f'<!ENTITY {name} "{f"&{below};" * width}">' for below, name in pairwise(names)]
    return ("<!DOCTYPE x [" + "".join(rows) + "]>").encode()


# --- pictures --------------------------------------------------------------------------------------------------------


def png(width: int, height: int, *, depth: int = 8, colour: int = 0, more: bytes = b"") -> bytes:
    """A black picture that is all there."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = b"\0" * (1 + (width * channels * depth + 7) // 8)
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    palette = _chunk(b"PLTE", b"\0" * 6) if colour == 3 else b""
    data = _chunk(b"IDAT", squeezed(row for _ in range(height)))
    return b"\x89PNG\r\n\x1a\n" + header + palette + more + data + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def gif(width: int, height: int) -> bytes:
    """A header of that size, and a frame as large with next to nothing in it."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return head + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00;"


def bmp(width: int, height: int) -> bytes:
    """Run-length coded, and almost nothing but its header."""
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 2835, 2835, 256, 0)
    at = 14 + len(head) + 1024
    return b"BM" + struct.pack("<IHHI", at + 2, 0, 0, at) + head + b"\0" * 1024 + b"\0\1"


def tiff(frames: int, width: int, height: int, *, depth: int = 1, loop: bool = False) -> bytes:
    """So many frames that share the same strip: white paper in CCITT's Group 4, or noughts where it is deeper."""
    if depth == 1:
        strip, compression = b"\xff" * ((height + 7) // 8) + b"\x00\x10\x01\x00\x10\x01", 4
    else:
        strip, compression = squeezed(times(b"\0", width * height * depth // 8)), 8
    out = bytearray(b"II*\0" + struct.pack("<I", 8 + len(strip) + len(strip) % 2) + strip + b"\0" * (len(strip) % 2))
    for frame in range(frames):
        rows = [
            *((256, 4, width), (257, 4, height), (258, 3, depth), (259, 3, compression), (262, 3, 0)),
            *((273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(strip))),
        ]
        following = len(out) + 2 + 12 * len(rows) + 4
        if frame == frames - 1:
            following = 8 + len(strip) + len(strip) % 2 if loop else 0
        out += struct.pack("<H", len(rows))
        out += b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in rows)
        out += struct.pack("<I", following)
    return bytes(out)


def tiff_of_strips(frames: int, strips: int) -> bytes:
    """So many frames that share the same list of so many strips, of which each is anywhere."""
    listed = b"\1\0\0\0" * strips
    out = bytearray(b"II*\0" + struct.pack("<I", 8 + len(listed)) + listed)
    for frame in range(frames):
        rows = [
            *((256, 1, 64), (257, 1, 64), (258, 1, 8), (259, 1, 1), (262, 1, 1)),
            *((273, strips, 8), (277, 1, 1), (278, 1, 1), (279, 1, 8)),
        ]
        following = len(out) + 2 + 12 * len(rows) + 4
        out += struct.pack("<H", len(rows))
        out += b"".join(struct.pack("<HHII", tag, 4, count, value) for tag, count, value in rows)
        out += struct.pack("<I", following if frame < frames - 1 else 0)
    return bytes(out)


def jpeg_of_many_scans(width: int, height: int, scans: int) -> bytes:
    """A page that is such a picture: see `many_scans`."""
    entries = (
        b"/Type/XObject/Subtype/Image/Width %d/Height %d/ColorSpace/DeviceGray/BitsPerComponent 8/Filter/DCTDecode"
    )
    picture = stream(many_scans(width, height, scans), entries % (width, height))
    return page_pdf(stream(b"q 612 0 0 792 0 0 cm /I Do Q"), picture, resources=b"/XObject<</I 5 0 R>>")


def many_scans(width: int, height: int, scans: int) -> bytes:
    """A progressive JPEG that refines the same coefficients again and again."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("L", (width, height), 255).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    begin = data.rindex(b"\xff\xda")
    return data[:begin] + data[begin:-2] * scans + b"\xff\xd9"


# --- mails -----------------------------------------------------------------------------------------------------------

MAIL: Final = b"From: ann@mill.example\nTo: ben@mill.example\nSubject: corn\nMIME-Version: 1.0\n"
MIXED: Final = MAIL + b"Content-Type: multipart/mixed; boundary=b\n\n"


def nested_mails(depth: int) -> bytes:
    """A mail in a mail in a mail."""
    return MAIL + b"Content-Type: message/rfc822\n\n" * depth + b"Subject: the innermost\n\nhello"


def nested_multiparts(depth: int) -> bytes:
    """A multipart in a multipart."""
    opened = b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (level, level) for level in range(depth)
    )
    return MAIL + opened + b"\nhello"


def guesses(count: int) -> bytes:
    """So many parts of which each makes the reader guess an encoding."""
    part = b"--b\nContent-Type: text/plain\n\n" + b"Gr\xfc\xdfe aus der M\xfchle, " * 40 + b"\n"
    return MIXED + part * count + b"--b--\n"


# --- all of them -----------------------------------------------------------------------------------------------------

Made = bytes | Pieces
BOMBS: Final[dict[str, tuple[Callable[[], Made], tuple[str, ...]]]] = {
    # name: (what makes its bytes, how it may end)
    "forms_10_to_the_9.pdf": (lambda: forms(10, 8), (READ, *STOPPED)),
    "text_of_16m_letters.pdf": (lambda: crowded(16 * MB), ("bomb", "out_of_memory", READ)),
    "text_of_16m_letters_and_a_page.pdf": (lambda: crowded(16 * MB, pages=2), (READ, "bomb", "out_of_memory")),
    "path_operators_5m.pdf": (
        lambda: page_pdf(deflated([b"0 0 m ", *times(b"9 9 l ", 5 * MB), b"S"])),
        (READ, *STOPPED),
    ),
    "content_1500mb.pdf": (lambda: page_pdf(deflated(times(b" " * 1000, 1_500_000))), (READ, *STOPPED)),
    "content_thrice_deflated_4gb.pdf": (lambda: twice_deflated(4_000 * MB), (READ, *STOPPED)),
    "saved_states_2m.pdf": (lambda: page_pdf(deflated(times(b"q ", 2 * MB))), (READ, "damaged", *STOPPED)),
    "arrays_in_arrays_1m.pdf": (lambda: page_pdf(stream(b"[" * MB)), (READ, "damaged", *STOPPED)),
    "dictionaries_in_dictionaries.pdf": (
        lambda: pdf([b"<</Type/Catalog/Pages 2 0 R/X" + b"<</X" * 100_000 + b">>" * 100_001]),
        ("damaged", "bomb"),
    ),
    "tree_of_10_to_the_12_pages.pdf": (lambda: page_tree(12, 10), ("bomb", "damaged")),
    "kids_200000.pdf": (lambda: flat_pages(200_000), ("bomb", "damaged")),
    "kids_40000.pdf": (lambda: flat_pages(40_000), (READ, "damaged")),
    "sheet_of_10_to_the_9_points.pdf": (
        lambda: page_pdf(stream(b"BT /F 9 Tf (far away) Tj ET"), HELVETICA, resources=FONT, box=b"0 0 1e9 1e9"),
        (READ, "bomb"),
    ),
    "picture_60000_gray.pdf": (
        lambda: painted(60_000, 8_000, b"/ColorSpace/DeviceGray/BitsPerComponent 8", times(b"\0" * 1_000, 480_000)),
        (READ, *STOPPED),
    ),
    "picture_30000x30000_claimed_rgb.pdf": (
        lambda: painted(30_000, 30_000, b"/ColorSpace/DeviceRGB/BitsPerComponent 8", [b"\0" * 1000]),
        (READ, "bomb", "damaged", "out_of_memory", "ocr_failed"),
    ),
    "picture_30000_of_jpeg_2000.pdf": (lambda: jpeg_2000(30_000, 30_000), (READ, *STOPPED, "ocr_failed")),
    "picture_of_9000_scans.pdf": (lambda: jpeg_of_many_scans(8_000, 8_000, 9_000), ("bomb", "ocr_failed")),
    "predictor_wide.pdf": (
        lambda: page_pdf(deflated([b"\0" * 99], b"/DecodeParms<</Predictor 12/Columns 2000000000/Colors 4>>")),
        (READ, "damaged", *STOPPED),
    ),
    "attachments_1000_of_one.pdf": (lambda: attachments(1_000, 60 * MB), (READ, "bomb")),
    "attachments_300000.pdf": (lambda: attachments(300_000, 21), (READ,)),
    "comments_300000.pdf": (lambda: annotated(300_000), (READ, *STOPPED)),
    "object_stream_2_to_the_31.pdf": (lambda: object_stream(2**31 - 1), (READ, "damaged", "bomb")),
    "xref_of_8m.pdf": (lambda: wide_xref(8_000_000), (READ, "damaged", "bomb")),
    "xref_of_200m.pdf": (lambda: wide_xref(200_000_000), ("damaged", READ, *STOPPED)),
    "directory_100000.docx": (lambda: many_entries(100_000), ("bomb",)),
    "directory_65537.xlsx": (lambda: many_entries(65_537, b"xl/a.xml"), ("bomb",)),
    "directory_90000.epub": (lambda: many_entries(90_000, b"OEBPS/1.html"), ("bomb",)),
    "one_text_900mb.docx": (
        lambda: docx([b"<w:p><w:r><w:t>", *times(b"a", 900 * MB), b"</w:t></w:r></w:p>"]),
        ("bomb",),
    ),
    "paragraphs_300mb.docx": (lambda: docx(times(b"<w:p/>", 50 * MB)), ("bomb",)),
    "paragraphs_60_at_a_ratio.docx": (
        lambda: docx([incompressible(100) * 20, *times(b"<w:p/>", 4 * MB)]),
        (READ, "bomb"),
    ),
    "tables_in_tables.docx": (lambda: docx([b"<w:tbl><w:tr><w:tc>" * 5_000]), ("bomb", "damaged")),
    "blanks_1m.docx": (
        lambda: docx([b'<w:p><w:r><w:t xml:space="preserve">', *times(b" ", MB), b"end</w:t></w:r></w:p>"]),
        (READ,),
    ),
    "entities.docx": (
        lambda: docx([b"<w:p><w:r><w:t>&e9;</w:t></w:r></w:p>"], head=quoted_dtd(10, 10)),
        ("bomb", "damaged"),
    ),
    "entities_quadratic.docx": (
        lambda: docx(
            [b"<w:p><w:r><w:t>" + b"&a;" * 50_000 + b"</w:t></w:r></w:p>"],
            head=b'<!DOCTYPE x [<!ENTITY a "' + b"a" * 50_000 + b'">]>',
        ),
        ("bomb", "damaged", READ),
    ),
    "relationships_1m.docx": (
        lambda: docx(
            [b"<w:p/>"],
            (
                "word/_rels/document.xml.rels",
                [
                    b'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">',
                    *times(b'<Relationship Type="x/footnotes" Target="a.xml"/>', 300_000),
                    b"</Relationships>",
                ],
            ),
        ),
        (READ, "bomb"),
    ),
    "properties_15mb.docx": (
        lambda: docx([b"<w:p/>"], ("docProps/core.xml", [b"<a>", *times(b"<a/>", 3_700_000), b"</a>"])),
        (READ,),
    ),
    "bzip2_that_says_to_be_small.docx": (lambda: understated(2_000), ("damaged",)),
    "headers_that_are_one.docx": (
        lambda: packed(
            [
                ("[Content_Types].xml", [TYPES]),
                ("word/document.xml", [WORD, WORD_END]),
                ("word/h.xml", [WORD, *times(b"<w:p><w:r><w:t>the same words</w:t></w:r></w:p>", 300_000), WORD_END]),
                (
                    "word/_rels/document.xml.rels",
                    [
                        b'<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">',
                        b'<Relationship Type="x/header" Target="h.xml"/>' * 150,
                        b"</Relationships>",
                    ],
                ),
            ]
        ),
        (READ, "bomb"),
    ),
    "stories_of_one_part_by_1600_names.docx": (
        lambda: many_names(
            ("footnotes", "endnotes", "comments", "header", "footer", "diagramData", "chart", "chartEx"),
            "headersandsoon.xml",
            200,
            [WORD, *times(b"<w:b/>", 2_600_000), WORD_END],
        ),
        (READ,),
    ),
    "objects_of_one_part_by_9000_names.docx": (
        lambda: many_names(("oleObject",), "embeddedobject.bin", 9_000, times(b"\0" * 1_000, 16_000)),
        (READ,),
    ),
    "lines_in_80_frames.docx": (
        lambda: docx(
            [
                *(incompressible(100) * 60, b"<w:tbl><w:tr><w:tc>" * 80, b"<w:p><w:r><w:t>"),
                *(*times(b"a<w:br/>", 9_500_000), b"</w:t></w:r></w:p>", b"</w:tc></w:tr></w:tbl>" * 80),
            ]
        ),
        (READ,),
    ),
    "sheets_1500mb.xlsx": (
        lambda: packed([("[Content_Types].xml", [TYPES]), ("xl/worksheets/sheet1.xml", times(b"<row/>", 250 * MB))]),
        ("bomb",),
    ),
    "slides_1500mb.pptx": (
        lambda: packed([("[Content_Types].xml", [TYPES]), ("ppt/slides/slide1.xml", times(b"<a:p/>", 250 * MB))]),
        ("bomb",),
    ),
    "content_1500mb.odt": (
        lambda: packed(
            [("mimetype", [b"application/vnd.oasis.opendocument.text"]), ("content.xml", times(b"<p/>", 375 * MB))]
        ),
        ("bomb",),
    ),
    "chapter_1500mb.epub": (
        lambda: packed([("mimetype", [b"application/epub+zip"]), ("OEBPS/1.html", times(b"<p/>", 375 * MB))]),
        ("bomb",),
    ),
    "mimetype_1gb.odt": (lambda: packed([("mimetype", times(b"a", 1_000 * MB))]), ("bomb", "unsupported_type")),
    "black_1_bit_30000.png": (lambda: png(30_000, 30_000, depth=1), ("bomb",)),
    "black_rgba_9900.png": (lambda: png(9_900, 9_900, colour=6), (READ, "out_of_memory")),
    "black_16_bit_9900.png": (lambda: png(9_900, 9_900, depth=16), (READ, "out_of_memory")),
    "compressed_text_500mb.png": (
        lambda: png(99, 99, more=_chunk(b"zTXt", b"k\0\0" + squeezed(times(b"a", 500 * MB)))),
        (READ, "damaged", "bomb"),
    ),
    "colour_profile_500mb.png": (
        lambda: png(99, 99, more=_chunk(b"iCCP", b"k\0\0" + squeezed(times(b"a", 500 * MB)))),
        (READ, "damaged", "bomb"),
    ),
    "header_65535.gif": (lambda: gif(65_535, 65_535), ("bomb",)),
    "header_60000.bmp": (lambda: bmp(60_000, 60_000), ("bomb",)),
    "frames_60000.tif": (lambda: tiff(60_000, 64, 64), ("bomb",)),
    "frames_that_circle.tif": (lambda: tiff(300, 64, 64, loop=True), (READ, "damaged", "bomb")),
    "frames_3000_of_90_megapixels.tif": (lambda: tiff(3_000, 9_500, 9_500), (READ, "deadline", "bomb", "damaged")),
    "strips_2m_in_20_frames.tif": (lambda: tiff_of_strips(20, 2 * MB), ("bomb",)),
    "gray_16_bit_9900.tif": (lambda: tiff(1, 9_900, 9_900, depth=16), (READ, "out_of_memory")),
    "scans_20000.jpg": (lambda: many_scans(2_000, 2_000, 20_000), (READ, "deadline", "damaged", "bomb")),
    "blanks_behind_the_mark_of_a_picture.txt": (lambda: [b"P6", *times(b" ", 60_000), b"far away"], (READ,)),
    "line_200mb.txt": (lambda: times(b"grass and grain ", 12_500_000), (READ,)),
    "blank_line_200mb.txt": (lambda: times(b" ", 200 * MB), (READ,)),
    "holes_1gb.txt": (lambda: [b"words\n", *times(b"\0" * 1000, MB)], (READ, "unknown_type")),
    "commas_100mb.csv": (lambda: [b"a,b\n1,2\n3,4\n", *times(b",", 100 * MB)], (READ,)),
    "quotes_100mb.csv": (lambda: [b"a,b\n1,2\n3,4\n", *times(b'"', 100 * MB)], (READ,)),
    "quotes_2000_in_a_row.csv": (lambda: b'a,b\n1,"x",y\n,"' + b'"' * 2_000 + b"x\n", (READ,)),
    "one_bad_byte_in_64k.txt": (lambda: [b"a\xff\n", *times(b"a", 64_000)], (READ,)),
    "astral_80mb.txt": (lambda: times("\U0001f33e".encode(), 20 * MB), (READ,)),
    "elements_in_elements_1m.html": (lambda: [b"<html>", *times(b"<div>", MB), b"end"], (READ,)),
    "tables_in_tables_100000.html": (lambda: [b"<html>", *times(b"<table><tr><td>", 100_000), b"end"], (READ,)),
    "breaks_60mb.html": (lambda: [b"<html><body>", *times(b"<p><br>", 9 * MB)], (READ, "deadline")),
    "blanks_in_pre_1m.html": (lambda: [b"<html><pre>", *times(b" ", MB), b"x"], (READ,)),
    "attributes_1m.html": (lambda: [b"<html><p ", *(b"a%d=1 " % n for n in range(MB)), b">x"], (READ,)),
    "open_tags_1m.html": (lambda: [b"<html>", *times(b"<a <a ", MB)], (READ,)),
    "comment_that_never_ends.html": (lambda: [b"<html><!--", *times(b"<!-- -- ", 5 * MB)], (READ,)),
    "entities.xml": (lambda: b"<?xml version='1.0'?>" + quoted_dtd(12, 10) + b"<x>&e11;</x>", (READ, "bomb")),
    "entities_that_never_end.xml": (lambda: [b"<?xml version='1.0'?>", *times(b"<!ENTITY ", 600_000)], (READ,)),
    "parameter_entities.xml": (
        lambda: (
            b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY % a '"
            + b"x" * 10_000
            + b"'><!ENTITY % b '"
            + b"%a;" * 10_000
            + b"'>%b;]><x>y</x>"
        ),
        (READ, "bomb"),
    ),
    "elements_in_elements_1m.xml": (lambda: [b"<?xml version='1.0'?>", *times(b"<a>", MB), b"end"], (READ, "bomb")),
    "attributes_1m.svg": (lambda: [b"<svg ", *(b'a%d="1" ' % n for n in range(MB)), b"/>"], (READ, "bomb")),
    "folded_header_4mb.eml": (
        lambda: [b"From: a@b.example\nSubject: x\n", *times(b" y\n", 1_300_000), b"\nhi"],
        (READ,),
    ),
    "encoded_words_3mb.eml": (
        lambda: [b"From: a@b.example\nSubject: ", *times(b"=?utf-8?q?a?= ", 200_000), b"\n\nhi"],
        (READ,),
    ),
    "recipients_1m.eml": (
        lambda: [b"From: a@b.example\nSubject: s\nTo: ", *times(b"a@b.example,", MB), b"\n\nhi"],
        (READ,),
    ),
    "parameters_of_a_part_2m.eml": (
        lambda: [MIXED, b"--b\nContent-Disposition: attachment", *times(b";a", 2 * MB), b"\n\nhello\n--b--\n"],
        (READ,),
    ),
    "semicolons_in_a_quote.eml": (
        lambda: [MIXED, b'--b\nContent-Disposition: attachment;"', *times(b";", 2 * MB), b"\n\nhello\n--b--\n"],
        (READ,),
    ),
    "blanks_after_a_semicolon.eml": (
        lambda: [b"From: a@b.example\nReceived: x;", *times(b" ", 65_000), b";\n\nhi"],
        (READ,),
    ),
    "mails_in_mails_3000.eml": (lambda: nested_mails(3_000), (READ,)),
    "mails_in_mails_200.eml": (lambda: nested_mails(200), (READ,)),
    "multiparts_in_multiparts_5000.eml": (lambda: nested_multiparts(5_000), (READ,)),
    "multiparts_in_multiparts_300.eml": (lambda: nested_multiparts(300), (READ,)),
    "parts_1m.eml": (lambda: [MIXED, *times(b"--b\n\n", MB)], (READ,)),
    "parts_1m_of_old_macs.eml": (lambda: [MIXED, *times(b"--b\r\r", MB)], (READ,)),
    "parts_19000.eml": (lambda: [MIXED, *times(b"--b\n\nhello\n", 19_000)], (READ,)),
    "delivery_reports_1m.eml": (
        lambda: [MAIL, b"Content-Type: message/delivery-status\n\n", *times(b"a: b\n\n", MB)],
        (READ,),
    ),
    "headers_of_a_part_1m.eml": (lambda: [MIXED, b"--b\n", *times(b"a:\n", MB), b"\nhi"], (READ,)),
    "short_lines_60mb.eml": (lambda: [MAIL, b"\n", *times(b"a\n", 30 * MB)], (READ, "out_of_memory")),
    "guessed_encodings_5000.eml": (lambda: guesses(5_000), (READ,)),
    "blanks_1m.eml": (lambda: [MAIL, b"\nhello", *times(b" ", MB), b"world"], (READ,)),
    "quoted_printable_40mb.eml": (
        lambda: [MAIL, b"Content-Transfer-Encoding: quoted-printable\n\n", *times(b"=20", 13 * MB)],
        (READ, "out_of_memory"),
    ),
    "mails_100000.mbox": (
        lambda: times(b"From a@b.example Thu Jan  1 00:00:00 2026\nSubject: x\n\nhi\n\n", 100_000),
        (READ,),
    ),
    "zones_200000.ics": (
        lambda: [
            b"BEGIN:VCALENDAR\r\n",
            *(b"BEGIN:VEVENT\r\nDTSTART;TZID=Far/%d:20260101T000000\r\n" % n for n in range(200_000)),
        ],
        (READ,),
    ),
    "digits_of_a_duration.ics": (
        lambda: b"BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nDTSTART:20260101\r\nDURATION:P" + b"9" * 5_000 + b"D\r\n",
        (READ,),
    ),
    "events_3m.ics": (lambda: [b"BEGIN:VCALENDAR\r\n", *times(b"BEGIN:VEVENT\r\n", 3 * MB)], (READ,)),
    "folded_line_40mb.ics": (
        lambda: [b"BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nSUMMARY:x", *times(b"\r\n y", 10 * MB)],
        (READ,),
    ),
    "rule_of_1m_days.ics": (
        lambda: [b"BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nSUMMARY:x\r\nRRULE:FREQ=YEARLY;BYDAY=", *times(b"1MO,", 200_000)],
        (READ,),
    ),
    "blanks_1m.ics": (
        lambda: [b"BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\nSUMMARY:x\r\nDESCRIPTION:x", *times(b" ", 900_000), b"y\r\n"],
        (READ,),
    ),
}


def write(name: str, folder: Path) -> Path:
    """One of them, in a folder."""
    made = BOMBS[name][0]()
    path = folder / name
    with open(path, "wb") as out:
        for piece in [made] if isinstance(made, bytes) else made:
            if piece.count(0) == len(piece) and len(piece) > 512:
                out.seek(len(piece), io.SEEK_CUR)  # a hole in a sparse file
            else:
                out.write(piece)
        out.truncate()
    return path


def tried(names: Sequence[str], place: Path) -> bool:
    """Make them, index them under a limit of 1 GiB, and print how each ended; whether all did so as they may."""
    from tests.mill import Mill

    home = place / "home"
    home.mkdir()
    for name in names:
        write(name, home)
    mill = Mill(place, NIGHTMILL_EMBEDDER="none", NIGHTMILL_MEMORY_LIMIT="1GiB", NIGHTMILL_SCALING="off")
    mill.run("users", "add", "ann", f"folder:{home}")
    with mill.start("init") as running:
        running.communicate()
    reasons = mill.reasons("ann")
    rows = mill.ledger(
        "SELECT i.path, i.state, count(a.id), total(a.cpu_seconds), max(a.seconds), max(a.peak_bytes) FROM items i "
        "LEFT JOIN attempts a ON a.item_id = i.id WHERE i.parent_id IS NULL GROUP BY i.id ORDER BY 4 DESC"
    )
    mill.stop_scheduler()
    right = True
    for path, state, attempts, cpu, longest, peak in rows:
        ended = reasons.get(path, str(state))
        fits = ended in BOMBS[path][1]
        right = right and fits
        figures = f"{attempts:3} attempts {cpu:7.1f} CPU s {longest or 0:7.1f} s {(peak or 0) / MB:7.0f} MB"
        print(f"{path:45} {ended:18} {figures}" + ("" if fits else f"   expected {', '.join(BOMBS[path][1])}"))
    return right


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="bombs-") as folder:
        raise SystemExit(0 if tried(sys.argv[1:] or list(BOMBS), Path(folder)) else 1)
