"""What the others do, as their users would write it. Runs in their environment: python peer.py VERB ORDER.json

Rule: loads nothing of ours; the last line that it prints is a JSON object. Processes are started by fork, as
ProcessPoolExecutor does on Linux with Python before 3.14: the cheapest start for them.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

#: Pages that a pool takes at a time, so that one large file keeps all processes busy.
_PAGES = 50


def main() -> int:
    """Do what is ordered; returns the exit code."""
    verb, order = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    print("\n" + json.dumps(VERBS[verb](**order)))
    return 0


# --- kreuzberg -------------------------------------------------------------------------------------------------------


def _kreuzberg_config(*, ocr: bool) -> Any:
    import kreuzberg

    if ocr:
        return kreuzberg.ExtractionConfig(use_cache=False, ocr=kreuzberg.OcrConfig(backend="tesseract", language="eng"))
    return kreuzberg.ExtractionConfig(use_cache=False, disable_ocr=True)


def kreuzberg_batch(files: list[str], ocr: bool, texts: bool) -> dict[str, Any]:
    """All in one call of the batch API, which uses all cores by threads. failed: file -> message."""
    import kreuzberg

    results = kreuzberg.batch_extract_files_sync(files, config=_kreuzberg_config(ocr=ocr))
    failed = {file: result.content for file, result in zip(files, results, strict=True) if _is_error(result)}
    found = {file: result.content for file, result in zip(files, results, strict=True) if file not in failed}
    return {"failed": failed, "chars": sum(map(len, found.values())), "texts": found if texts else {}}


def kreuzberg_each(files: list[str], readings: int) -> dict[str, Any]:
    """One file after the other: file -> CPU seconds, of all threads, the least; a file that fails is left out."""
    import kreuzberg

    config = _kreuzberg_config(ocr=False)
    taken: dict[str, float] = {}
    for file in files * readings:
        began = time.process_time()
        try:
            kreuzberg.extract_file_sync(file, config=config)
        except Exception:  # noqa: BLE001 - whatever it does not read is not compared
            continue
        taken[file] = min(taken.get(file, 1e9), time.process_time() - began)
    return {"cpu_seconds": taken}


def _is_error(result: Any) -> bool:
    """The batch API answers with a text where a single call raises."""
    return bool(result.content.startswith("Error: ") and not result.metadata)


# --- pytesseract -----------------------------------------------------------------------------------------------------


def pytesseract_pages(files: list[str], dpi: int, workers: int) -> dict[str, Any]:
    """Every page of PDFs, rendered by PyMuPDF, in a pool. dpi: 0 takes the picture on the page as it is."""
    import pymupdf

    _require_tesseract()
    pages = []
    for file in files:
        with pymupdf.open(file) as pdf:
            pages += [(file, number, dpi) for number in range(len(pdf))]
    with _pool(workers) as pool:
        chars = sum(pool.map(_recognise_page, pages))
    return {"pages": len(pages), "chars": chars}


def pytesseract_images(files: list[str], workers: int) -> dict[str, Any]:
    """Image files as they are, in a pool."""
    _require_tesseract()
    with _pool(workers) as pool:
        return {"texts": dict(zip(files, pool.map(_recognise_image, files), strict=True))}


def _require_tesseract() -> None:
    if shutil.which("tesseract") is None:
        sys.exit("the program tesseract is not installed: apt-get install tesseract-ocr")


def _recognise_page(page: tuple[str, int, int]) -> int:
    import io

    import pymupdf
    import pytesseract
    from PIL import Image

    file, number, dpi = page
    with pymupdf.open(file) as pdf:
        if dpi:
            pixmap = pdf[number].get_pixmap(dpi=dpi)
            image = Image.frombytes("RGB", (pixmap.width, pixmap.height), pixmap.samples)
        else:
            image = Image.open(io.BytesIO(pdf.extract_image(pdf[number].get_images()[0][0])["image"]))
        return len(pytesseract.image_to_string(image))


def _recognise_image(file: str) -> str:
    import pytesseract
    from PIL import Image

    with Image.open(file) as image:
        return str(pytesseract.image_to_string(image))


# --- text of PDFs ----------------------------------------------------------------------------------------------------


def pdf_pool(library: str, files: list[str], workers: int) -> dict[str, Any]:
    """The text of all pages by "pymupdf" or "pypdfium2", nothing else, in a pool."""
    import pypdfium2

    ranges = []
    for file in files:
        pdf = pypdfium2.PdfDocument(file)
        count = len(pdf)
        pdf.close()
        ranges += [(file, start, min(count, start + _PAGES)) for start in range(0, count, _PAGES)]
    with _pool(workers) as pool:
        chars = sum(pool.map({"pymupdf": _chars_by_pymupdf, "pypdfium2": _chars_by_pdfium}[library], ranges))
    return {"pages": sum(end - start for _, start, end in ranges), "chars": chars}


def _chars_by_pymupdf(part: tuple[str, int, int]) -> int:
    import pymupdf

    file, start, end = part
    with pymupdf.open(file) as pdf:
        return sum(len(pdf[number].get_text()) for number in range(start, end))


def _chars_by_pdfium(part: tuple[str, int, int]) -> int:
    import pypdfium2

    file, start, end = part
    pdf = pypdfium2.PdfDocument(file)
    return sum(len(pdf[number].get_textpage().get_text_bounded()) for number in range(start, end))


def pdf_texts(files: list[str], workers: int) -> dict[str, Any]:
    """texts: library -> file -> whole text; "" where the library raises. four: those that say what the words are."""
    pairs = [(library, file) for file in files for library in _READERS]
    with _pool(workers) as pool:
        texts = list(pool.map(_whole_text, pairs))
    found: dict[str, dict[str, str]] = {library: {} for library in _READERS}
    for (library, file), text in zip(pairs, texts, strict=True):
        found[library][file] = text
    return {"texts": found, "four": [library for library in _READERS if library not in _SPARE]}


def _whole_text(pair: tuple[str, str]) -> str:
    library, file = pair
    try:
        # Half a surrogate pair cannot be printed.
        return _READERS[library](file).encode("utf-8", "replace").decode()
    except Exception:  # noqa: BLE001 - the others of the four decide about this file
        return ""


def _by_pypdfium2(file: str) -> str:
    import pypdfium2

    return "\n".join(page.get_textpage().get_text_bounded() for page in pypdfium2.PdfDocument(file))


def _by_pypdf(file: str) -> str:
    import pypdf

    return "\n".join(page.extract_text() for page in pypdf.PdfReader(file).pages)


def _by_pdfminer(file: str) -> str:
    from pdfminer.high_level import extract_text

    return extract_text(file)


def _by_kreuzberg(file: str) -> str:
    import kreuzberg

    return kreuzberg.extract_file_sync(file, config=_kreuzberg_config(ocr=False)).content


def _by_pdf_oxide(file: str) -> str:
    import pdf_oxide

    pdf = pdf_oxide.PdfDocument(file)
    return "\n".join(pdf.extract_text(number) for number in range(pdf.page_count()))


def _by_pdftotext(file: str) -> str:
    import subprocess

    return subprocess.run(["pdftotext", file, "-"], capture_output=True, check=True, timeout=120).stdout.decode()


def _readers() -> dict[str, Callable[[str], str]]:
    """Four, the last of which is poppler where it is installed, and pdf_oxide beside them.

    Kreuzberg reads PDFs by pdfium, as pypdfium2 does, so that the two of them alone are a majority of two: with
    pdf_oxide in its place all four are programs of their own.
    """
    import shutil

    poppler = shutil.which("pdftotext") is not None
    fourth = {"pdftotext": _by_pdftotext} if poppler else {"kreuzberg": _by_kreuzberg}
    return {
        "pypdfium2": _by_pypdfium2,
        "pypdf": _by_pypdf,
        "pdfminer.six": _by_pdfminer,
        **fourth,
        "pdf_oxide": _by_pdf_oxide,
    }


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("fork"))


_READERS = _readers()
_SPARE = ("pdf_oxide",)
VERBS: dict[str, Callable[..., dict[str, Any]]] = {
    "kreuzberg-batch": kreuzberg_batch,
    "kreuzberg-each": kreuzberg_each,
    "pytesseract-pages": pytesseract_pages,
    "pytesseract-images": pytesseract_images,
    "pdf-pool": pdf_pool,
    "pdf-texts": pdf_texts,
}

if __name__ == "__main__":
    sys.exit(main())
