"""What type an item is: by its content first, by its name only between kinds of text that look alike.

Rule: pure functions over bytes and names; nothing is opened here, and no parsing library is loaded.
"""

from __future__ import annotations

import codecs
import re
import struct
from collections.abc import Collection
from mmap import mmap
from typing import Final

#: Bytes from the beginning that decide. PDF readers look for their mark in the first 1,024, tar has it at 257.
HEAD_BYTES: Final = 65_536

UNKNOWN: Final = "application/octet-stream"
ZIP: Final = "application/zip"
OLE: Final = "application/x-ole-storage"
ENCRYPTED_OFFICE: Final = "application/x-encrypted-office"
PDF: Final = "application/pdf"
DOCX: Final = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
MAIL: Final = "message/rfc822"
MBOX: Final = "application/mbox"
CALENDAR: Final = "text/calendar"
HTML: Final = "text/html"
CSV: Final = "text/csv"
TSV: Final = "text/tab-separated-values"
XML: Final = "application/xml"
JSON: Final = "application/json"
PLAIN: Final = "text/plain"
IMAGES: Final = frozenset(
    {
        *("image/png", "image/jpeg", "image/tiff", "image/webp", "image/gif", "image/bmp", "image/heic", "image/avif"),
        "image/x-portable-anymap",
    }
)
#: Text whose kind only its name tells: one reader, and no lie when the name says another of them.
_PLAIN_TEXTS: Final = frozenset({PLAIN, CSV, TSV, XML, JSON, "text/markdown", "image/svg+xml"})

_WORD = "application/vnd.openxmlformats-officedocument."
_BY_ENDING: Final = {
    "pdf": PDF,
    "docx": DOCX,
    "docm": DOCX,
    "dotx": DOCX,
    "xlsx": _WORD + "spreadsheetml.sheet",
    "xlsm": _WORD + "spreadsheetml.sheet",
    "pptx": _WORD + "presentationml.presentation",
    "pptm": _WORD + "presentationml.presentation",
    "doc": "application/msword",
    "dot": "application/msword",
    "xls": "application/vnd.ms-excel",
    "ppt": "application/vnd.ms-powerpoint",
    "msg": "application/vnd.ms-outlook",
    "odt": "application/vnd.oasis.opendocument.text",
    "ods": "application/vnd.oasis.opendocument.spreadsheet",
    "odp": "application/vnd.oasis.opendocument.presentation",
    "rtf": "application/rtf",
    "epub": "application/epub+zip",
    "zip": ZIP,
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "tif": "image/tiff",
    "tiff": "image/tiff",
    "webp": "image/webp",
    "gif": "image/gif",
    "bmp": "image/bmp",
    "heic": "image/heic",
    "heif": "image/heic",
    "avif": "image/avif",
    **dict.fromkeys(("pbm", "pgm", "ppm", "pnm"), "image/x-portable-anymap"),
    "svg": "image/svg+xml",
    "eml": MAIL,
    "mbox": MBOX,
    "ics": CALENDAR,
    "htm": HTML,
    "html": HTML,
    "xhtml": HTML,
    "csv": CSV,
    "tsv": TSV,
    "tab": TSV,
    "xml": XML,
    **dict.fromkeys(("json", "jsonl", "ndjson", "geojson", "ipynb"), JSON),
    "md": "text/markdown",
    "markdown": "text/markdown",
    "txt": PLAIN,
    "text": PLAIN,
    "log": PLAIN,
    "rst": PLAIN,
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "7z": "application/x-7z-compressed",
    "gz": "application/gzip",
    "exe": "application/vnd.microsoft.portable-executable",
}

#: (offset, bytes, type), the first that fits. From the specifications of the formats and the `file` program's lists.
_MARKS: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x89PNG\r\n\x1a\n", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"II*\x00", "image/tiff"),
    (0, b"MM\x00*", "image/tiff"),
    (0, b"II+\x00", "image/tiff"),
    (0, b"MM\x00+", "image/tiff"),
    (0, b"GIF87a", "image/gif"),
    (0, b"GIF89a", "image/gif"),
    (0, b"PK\x03\x04", ZIP),
    (0, b"PK\x05\x06", ZIP),
    (0, b"PK\x07\x08", ZIP),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", OLE),
    (0, b"{\\rtf", "application/rtf"),
    (0, b"%!PS", "application/postscript"),
    (0, b"\xc5\xd0\xd3\xc6", "application/postscript"),
    (0, b"8BPS", "image/vnd.adobe.photoshop"),
    (0, b"DDS ", "image/vnd-ms.dds"),
    (0, b"BLP1", "image/x-blp"),
    (0, b"BLP2", "image/x-blp"),
    (0, b"\xd7\xcd\xc6\x9a", "image/wmf"),
    (0, b"\x01\x00\x09\x00\x00\x03", "image/wmf"),
    (0, b"\x02\x00\x09\x00\x00\x03", "image/wmf"),
    (40, b" EMF", "image/emf"),
    (0, b"\x01\xda\x00", "image/sgi"),
    (0, b"\x01\xda\x01", "image/sgi"),
    (0, b"\x00\x00\x01\x00", "image/vnd.microsoft.icon"),
    (0, b"\x00\x00\x00\x0cjP  ", "image/jp2"),
    (0, b"\xff\x4f\xff\x51", "image/jp2"),
    (4, b"\x11\xaf", "video/x-fli"),
    (4, b"\x12\xaf", "video/x-fli"),
    (0, b"AT&TFORM", "image/vnd.djvu"),
    (4, b"ftypM4A", "audio/mp4"),
    (4, b"ftypqt", "video/quicktime"),
    (4, b"ftyp", "video/mp4"),
    (4, b"moov", "video/quicktime"),
    (0, b"\x1aE\xdf\xa3", "video/x-matroska"),
    (0, b"FLV\x01", "video/x-flv"),
    (0, b"\x00\x00\x01\xba", "video/mpeg"),
    (0, b"\x00\x00\x01\xb3", "video/mpeg"),
    (0, b"0&\xb2u\x8ef\xcf\x11", "video/x-ms-asf"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"\xff\xfb", "audio/mpeg"),
    (0, b"\xff\xf3", "audio/mpeg"),
    (0, b"fLaC", "audio/flac"),
    (0, b"OggS", "audio/ogg"),
    (0, b"#!AMR", "audio/amr"),
    (0, b"MThd", "audio/midi"),
    (0, b"\x1f\x8b", "application/gzip"),
    (0, b"BZh", "application/x-bzip2"),
    (0, b"\xfd7zXZ\x00", "application/x-xz"),
    (0, b"\x28\xb5\x2f\xfd", "application/zstd"),
    (0, b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (0, b"Rar!\x1a\x07", "application/vnd.rar"),
    (0, b"MSCF\x00\x00", "application/vnd.ms-cab-compressed"),
    (0, b"ITSF", "application/vnd.ms-htmlhelp"),
    (257, b"ustar", "application/x-tar"),
    (0, b"\x7fELF", "application/x-elf"),
    (0, b"\xca\xfe\xba\xbe", "application/java-vm"),
    (0, b"\xcf\xfa\xed\xfe", "application/x-mach-binary"),
    (0, b"\xce\xfa\xed\xfe", "application/x-mach-binary"),
    (0, b"\x00asm", "application/wasm"),
    (0, b"MZ", "application/vnd.microsoft.portable-executable"),
    (0, b"\x00\x01\x00\x00\x00", "font/ttf"),
    (0, b"OTTO", "font/otf"),
    (0, b"ttcf", "font/collection"),
    (0, b"wOFF", "font/woff"),
    (0, b"wOF2", "font/woff2"),
    (0, b"SQLite format 3\x00", "application/vnd.sqlite3"),
    (0, b"\x78\x9f\x3e\x22", "application/vnd.ms-tnef"),
    (0, b"!BDN", "application/vnd.ms-outlook-pst"),
    (0, b"!<arch>\n", "application/x-archive"),
    (0, b"\xed\xab\xee\xdb", "application/x-rpm"),
    (0, b"bplist00", "application/x-plist"),
    (0, b"PAR1", "application/vnd.apache.parquet"),
    (0, b"\x89HDF\r\n\x1a\n", "application/x-hdf5"),
    (0, b"ISc(", "application/x-installshield"),
    (60, b"BOOKMOBI", "application/x-mobipocket-ebook"),
    (0, b"\x00\x05\x16\x07", "application/applefile"),
)
#: Marks that texts begin with; files with any other have bytes that no text has, soon.
_MARKS_OF_TEXT: Final = frozenset({b"{\\rtf", b"%!PS", b"!<arch>\n"})
#: Sizes of the known versions of the header that follows the 14 bytes of the file's own.
_BMP_HEADERS: Final = frozenset({12, 40, 52, 56, 64, 108, 124})
#: Brands of the pictures that are kept as films are (ISO/IEC 23008-12, annex B; AV1 Image File Format, 6).
_STILL_BRANDS: Final = (
    (frozenset({b"avif", b"avis"}), "image/avif"),
    (frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}), "image/heic"),
)
#: Size and depth of a picture in the raw forms of Netpbm; the forms in ASCII are data rather than pictures. Each blank
#: is one step: runs of them within a run could be parted in as many ways as two to the power of their length.
_NETPBM = re.compile(rb"P[456](?:\s|#[^\n]{0,200}\n)+[1-9]\d{0,5}\s+[1-9]\d{0,5}\s")
_RIFF: Final = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}

_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: (encoding, bytes a unit, places of a unit that are mostly NUL in Western text, the place that never is).
_NUL_LANES: Final = (
    ("utf-32-le", 4, (2, 3), 0),
    ("utf-32-be", 4, (0, 1), 3),
    ("utf-16-le", 2, (1,), 0),
    ("utf-16-be", 2, (0,), 1),
)
#: Control bytes that no text has; ESC (0x1b) is in ISO-2022-JP and in logs.
_NOT_TEXT: Final = bytes(code for code in (*range(9), *range(0x0E, 0x1B), *range(0x1C, 0x20), 0x7F))
#: But for these, in Korean text of before (ISO-2022-KR, RFC 1557).
_SHIFTS: Final = b"\x0e\x0f"
#: With which texts of DOS end, and are filled up to a whole block.
_DOS_END: Final = b"\x1a"
_ASCII_TEXT: Final = bytes((0x09, 0x0A, 0x0D, *range(0x20, 0x7F)))

_FIELD = re.compile(rb"([!-9;-~]{1,60})[ \t]*:")
_MAIL_FIELDS: Final = frozenset(
    b"from to cc bcc subject date sender reply-to received return-path delivered-to message-id mime-version references "
    b"in-reply-to content-type content-transfer-encoding x-mailer dkim-signature delivery-date envelope-to "
    b"x-mozilla-status user-agent list-id x-originating-ip arc-seal".split()
)
#: These alone, even twice, also begin notes, web responses and multipart files.
_WEAK_FIELDS: Final = frozenset({b"content-type", b"content-transfer-encoding", b"date", b"references", b"user-agent"})
#: People write these too, above minutes, memos and what they keep of a mail; under a name that says text they do not
#: make one, whose other fields would not be read.
_WRITTEN_FIELDS: Final = frozenset({b"from", b"to", b"cc", b"bcc", b"subject", b"date"})
#: "From ann@mill.example Thu Jan  1 00:00:00 2026", the date as asctime(3) writes it, then a header.
_FROM_LINE = re.compile(
    rb"[\r\n]*From [^\r\n]{0,300}\b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) +\d{1,2} +\d{1,2}:\d\d"
    rb"[^\r\n]{0,60}\r?\n[!-9;-~]{1,76}:"
)
_JSON_START = re.compile(rb"""(?:\[\s*)?\{\s*"[^"\\\n]{1,200}"\s*:""")
_COMMENT = re.compile(rb"\A(?:\s|\xef\xbb\xbf|<!--.*?-->|<\?xml.*?\?>)*", re.DOTALL)
_HTML_START = re.compile(
    rb"<(?:!doctype\s+html|html|head|body|title|meta|link|script|style|table|div|p|h[1-6]|ul|ol|dl|font|center|pre|span)"
    rb"[\s>/]",
    re.IGNORECASE,
)


def media_type_of(head: bytes, name: str) -> str:
    """The type of an item whose first HEAD_BYTES bytes are `head`.

    Returns ZIP and OLE for the two containers, which `zip_media_type` and `ole_media_type` tell apart, and UNKNOWN for
    bytes that are neither a known type nor text.
    """
    found = _by_mark(head, named_type(name))
    if found:
        return found
    if named_type(name) == PDF and re.search(rb"\d obj\b", head):
        return PDF  # its mark is gone, its objects are not
    text = _as_text(head, name)
    return UNKNOWN if text is None else _kind_of_text(text, name)


def named_type(name: str) -> str:
    """What the ending of the name says, "" when it says nothing that is known."""
    return _BY_ENDING.get(_ending(name), "")


def may_be_mailbox(head: bytes) -> bool:
    """Whether a mail begins with the line that separates mails in an mbox file: then more of them may follow."""
    return _FROM_LINE.match(head) is not None


def name_lies(name: str, media_type: str) -> bool:
    """Whether the name promises another type than was found; kinds of plain text are all one for this."""
    said = named_type(name)
    return bool(said) and said != media_type and not (said in _PLAIN_TEXTS and media_type in _PLAIN_TEXTS)


def zip_media_type(entries: Collection[str], mimetype: bytes) -> str:
    """What a ZIP container is. entries: the names in it; mimetype: what its entry of that name says (ODF, EPUB)."""
    said = mimetype[:100].decode("ascii", "replace").strip()
    if re.fullmatch(r"application/[a-z0-9.+-]+", said):
        return said
    if "[Content_Types].xml" in entries or "_rels/.rels" in entries:
        folders = {entry.split("/", 1)[0].lower() for entry in entries if "/" in entry}
        for folder, media_type in (
            ("word", DOCX),
            ("xl", _WORD + "spreadsheetml.sheet"),
            ("ppt", _WORD + "presentationml.presentation"),
            ("visio", "application/vnd.ms-visio.drawing"),
        ):
            if folder in folders:
                return media_type
        return "application/vnd.openxmlformats-package"
    if "META-INF/MANIFEST.MF" in entries:
        return "application/java-archive"
    if "AndroidManifest.xml" in entries:
        return "application/vnd.android.package-archive"
    if "Index/Document.iwa" in entries or "index.apxl" in entries or "index.xml" in entries:
        return "application/vnd.apple.iwork"
    return ZIP


def ole_media_type(names: Collection[str]) -> str:
    """What an OLE2 container is, by the names in its directory."""
    found = {name.lower() for name in names}
    if "encryptedpackage" in found:
        return ENCRYPTED_OFFICE
    if "worddocument" in found:
        return "application/msword"
    if found & {"workbook", "book"}:
        return "application/vnd.ms-excel"
    if "powerpoint document" in found or "pp97_dualstorage" in found:
        return "application/vnd.ms-powerpoint"
    if "__properties_version1.0" in found or any(name.startswith("__substg1.0_") for name in found):
        return "application/vnd.ms-outlook"
    if "visiodocument" in found:
        return "application/vnd.visio"
    return OLE


def ole_names(data: bytes | mmap) -> frozenset[str]:
    """The names in the directory of an OLE2 file, as far as it can be followed ([MS-CFB] 2.2 to 2.6).

    Looks at the sectors that the header's own 109 FAT entries reach, which is the first 7 MB or more; the directory of
    a file is small and usually stands there. Damage ends the walk, nothing is raised.
    """
    if len(data) < 512:
        return frozenset()
    shift = struct.unpack_from("<H", data, 30)[0]
    if shift not in (9, 12):
        return frozenset()
    size = 1 << shift
    sector = struct.unpack_from("<I", data, 48)[0]
    tables = struct.unpack_from("<109I", data, 76)
    names: set[str] = set()
    for _ in range(4096):
        at = (sector + 1) * size
        if at + size > len(data):
            break
        for entry in range(at, at + size, 128):
            length = struct.unpack_from("<H", data, entry + 64)[0]
            if 2 < length <= 64 and data[entry + 66] in (1, 2):
                names.add(data[entry : entry + length - 2].decode("utf-16-le", "replace").lstrip("\x01\x05"))
        table, place = divmod(sector, size // 4)
        where = (tables[table] + 1) * size + place * 4 if table < len(tables) else len(data)
        if where + 4 > len(data):
            break
        sector = struct.unpack_from("<I", data, where)[0]
    return frozenset(names)


def encoding_of_start(head: bytes) -> str:
    """The Unicode encoding that a byte order mark, or NULs at every other place, give away; else ""."""
    sample = head[:4096]
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            # A mark of two bytes is soon there by chance.
            return encoding if encoding != "utf-16" or _sense(sample, encoding) > 0.9 else ""
    if len(sample) < 4 or b"\0" not in sample:
        return ""
    for encoding, width, empty, full in _NUL_LANES:
        whole = sample[: len(sample) // width * width]
        shares = [whole[lane::width].count(0) * width / len(whole) for lane in range(width)]
        most = min(shares[lane] for lane in empty)
        if most > 0.5 and shares[full] < 0.02 and _sense(whole, encoding) > 0.95:
            return encoding
        # Of other scripts only blanks, digits and line ends have a NUL, never all; the rest must make sense as text.
        few = width == 2 and len(whole) >= 32 and most > 0.02 and shares[full] <= most / 2
        if few and _sense(whole, encoding) > 0.97:
            return encoding
    return ""


def _sense(data: bytes, encoding: str) -> float:
    """The share of characters, 0 to 1, that are in use: alphabets, and of Han and Hangul those that people write."""
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(data).replace("\ufeff", "")
    except (UnicodeDecodeError, ValueError):
        return 0.0
    return sum(map(_is_in_use, text)) / len(text) if text else 0.0


def _is_in_use(sign: str) -> bool:
    if sign < "\u2000":
        return sign.isprintable() or sign.isspace()
    for charset in ("gb2312", "shift_jis", "euc_kr", "cp1252"):
        try:
            sign.encode(charset)
        except UnicodeEncodeError:
            continue
        return True
    return sign >= "\U0001f000"


#: RFC 1740: a file of an old Mac in one piece.
_APPLE_SINGLE: Final = b"\x00\x05\x16\x00"


def _by_mark(head: bytes, named: str) -> str:
    if head[4:8] == b"ftyp" and (still := _still_picture(head)):
        return still
    for offset, mark, media_type in _MARKS:
        if head.startswith(mark, offset):
            return "" if mark not in _MARKS_OF_TEXT and _is_plain(head) else media_type
    if head[:1] == b"P" and _NETPBM.match(head):
        return "image/x-portable-anymap"
    if head[:4] == b"RIFF" and not _is_plain(head):
        return _RIFF.get(head[8:12], "application/x-riff")
    if head[:2] == b"BM" and len(head) >= 26 and struct.unpack_from("<I", head, 14)[0] in _BMP_HEADERS:
        return "image/bmp"
    # Adobe's readers accept junk before the mark, and so do we; but not a mail or a text that quotes one.
    at = head.find(b"%PDF-", 0, 1024)
    if at == 0 and named in _PLAIN_TEXTS and b"obj" not in head and _is_plain(head):
        return ""
    if at >= 0 and (at == 0 or not head[:at].isascii() or not head[:at].strip()):
        return PDF
    if at > 0 and b" obj" in head[at:] and not _looks_like_mail(head):
        return PDF
    # After the PDF: the fork of a file that an old Mac wrapped is what its reader opens.
    return "application/applefile" if head.startswith(_APPLE_SINGLE) else ""


def _is_plain(head: bytes) -> bool:
    """Whether a file that begins with the letters of a mark is a text about something else: it has no other bytes."""
    return not head.translate(None, _ASCII_TEXT)


def _still_picture(head: bytes) -> str:
    """By the brands that a file says it keeps to: its own, then those that it is compatible with."""
    size = min(int.from_bytes(head[:4], "big"), 256)
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))]
    for known, media_type in _STILL_BRANDS:
        if brands[0] in known - {b"mif1", b"msf1"}:
            return media_type
    if brands[0] in (b"mif1", b"msf1"):
        return next((media_type for known, media_type in _STILL_BRANDS if known.intersection(brands)), "")
    return ""


def _as_text(head: bytes, name: str) -> bytes | None:
    """The head as bytes in an ASCII-compatible form, or None when it is no text."""
    encoding = encoding_of_start(head)
    if encoding:
        return head.decode(encoding, "ignore").encode("utf-8", "ignore")
    head = head.rstrip(_DOS_END)
    shifts = _SHIFTS if b"\x1b$)C" in head else b""
    controls = len(head) - len(head.translate(None, _NOT_TEXT)) - sum(map(head.count, shifts))
    # Some exports have stray NULs between the fields; anything denser is data.
    if controls > len(head) // 50 and not (b"\0" in head and _is_text_with_nuls(head, name)):
        return None
    return head


def _is_text_with_nuls(head: bytes, name: str) -> bool:
    rest = head.replace(b"\0", b"")
    if len(rest) <= len(head) * 0.6:
        return False
    plain = sum(rest.count(code) for code in (*range(0x20, 0x7F), 9, 10, 13))
    if plain > 0.99 * len(rest):
        return True
    # Damaged UTF-8 under a name that promises text; of data hardly half would be readable.
    readable = (sign for sign in rest.decode("utf-8", "ignore") if sign.isprintable() or sign in "\t\r\n")
    return named_type(name) in _PLAIN_TEXTS and len("".join(readable).encode()) > 0.75 * len(rest)


def _kind_of_text(text: bytes, name: str) -> str:
    said = named_type(name)
    start = text[_leading(text) :]
    if start[:15].upper() == b"BEGIN:VCALENDAR":
        return CALENDAR
    if _HTML_START.match(start[:64]) and _is_html(start, said):
        return HTML
    if start[:4].lower() == b"<svg":
        return "image/svg+xml"
    if text.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<?xml") or (said == XML and start.startswith(b"<")):
        return HTML if b"<html" in text[:4096].lower() else XML
    if said == HTML and b"<" in text:
        return HTML
    weak = _WRITTEN_FIELDS if said in _PLAIN_TEXTS else frozenset[bytes]()
    if said == MAIL or _looks_like_mail(text, weak) or may_be_mailbox(text):
        return MAIL
    if said in _PLAIN_TEXTS:
        return said
    return JSON if _JSON_START.match(start) else _table(text) or PLAIN


def _leading(text: bytes) -> int:
    match = _COMMENT.match(text[:8192])
    return match.end() if match else 0


def _is_html(start: bytes, said: str) -> bool:
    if said == HTML or start[:14].lower().startswith((b"<!doctype html", b"<html")):
        return True
    # Markdown and XML use single tags too: without the name, more than one pair has to be there.
    return said not in _PLAIN_TEXTS and start[:8192].count(b"</") >= 2


def _looks_like_mail(text: bytes, weak: frozenset[bytes] = frozenset()) -> bool:
    """Whether the text begins with a block of header fields of which mails have some, other than `weak`."""
    lines = text[:16_384].lstrip(b"\xef\xbb\xbf\r\n").splitlines()
    if lines and lines[0].startswith((b"From ", b">From ")):
        lines = lines[1:]
    found: set[bytes] = set()
    fields = 0
    for entry in lines:
        if not entry.strip():
            break
        if entry[:1] in b" \t" and fields:
            continue
        match = _FIELD.match(entry)
        if match is None:
            break
        fields += 1
        field = match.group(1).lower()
        if field in _MAIL_FIELDS:
            found.add(field)
    telling = bool(found - _WEAK_FIELDS) and bool(found - weak)
    return len(found) >= 2 and telling and len(found) * 8 >= fields


def _table(text: bytes) -> str:
    """CSV or TSV when the first lines all have the same number, two or more, of one delimiter."""
    lines = [entry for entry in text[:16_384].splitlines()[:-1][:20] if entry.strip()]
    if len(lines) < 3:
        return ""
    for delimiter, media_type, least in ((b"\t", TSV, 1), (b";", CSV, 2), (b"|", CSV, 2), (b",", CSV, 2)):
        counts = {entry.count(delimiter) for entry in lines}
        if len(counts) == 1 and min(counts) >= least:
            return media_type
    return ""


def _ending(name: str) -> str:
    last = name.rpartition("/")[2]
    return last.rpartition(".")[2].lower() if "." in last else ""
