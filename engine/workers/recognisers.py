"""Tesseract behind one seam, with two backends: in this process (tesserocr), or as a program (pytesseract).

Rule: both get the same sheets and give the same values. What is done when a page was read badly is not decided here.

    Sheet -> recogniser (tesserocr | pytesseract) -> Reading
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from engine.ports import StageFailed
from engine.reasons import Reason
from engine.workers.tessdata import find_tessdata, program_languages

if TYPE_CHECKING:
    from engine.workers.sheets import Sheet

#: A word below this confidence is more likely wrong than right, and counts against a reading.
_DOUBTFUL: Final = 50.0
#: Between words of these scripts there is no blank: Chinese, and the kana and signs of Japanese.
_UNSPACED = re.compile("[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was read on a sheet.

    confidence  the mean of its words, 0 to 100; 100 where there are none
    words       how many there are
    weight      letters and digits, each counted by how far its word is beyond doubt: which of two readings is better
    """

    text: str
    confidence: float
    words: int
    weight: float


class Recogniser(Protocol):
    def recognise(self, sheet: Sheet) -> Reading:
        """Raises StageFailed(OCR_FAILED)."""
        ...


def open_recogniser(languages: Sequence[str], backend: str) -> Recogniser:
    """The named backend. "auto" is tesserocr where it can be loaded and there are data for it, else the program.

    Raises StageFailed: ocr_failed, ocr_language_missing.
    """
    if backend not in ("auto", "tesserocr", "pytesseract"):
        raise StageFailed(Reason.OCR_FAILED, f"{backend!r:.100} is no OCR backend; tesserocr and pytesseract are")
    if backend == "pytesseract":
        return Pytesseract(languages)
    try:
        return Tesserocr(languages)
    except ImportError as error:
        if backend == "tesserocr":
            raise StageFailed(Reason.OCR_FAILED, f"tesserocr cannot be loaded: {error}") from error
    except StageFailed:
        # The program may have data in places of its own.
        if backend == "tesserocr" or shutil.which("tesseract") is None:
            raise
    return Pytesseract(languages)


class Tesserocr:
    """Tesseract in this process, warm. Page segmentation is automatic: modes that are better for single columns break
    pages with several (character error rate 7 -> 70)."""

    def __init__(self, languages: Sequence[str]) -> None:
        import tesserocr

        data = find_tessdata(languages)
        try:
            self._api: Any = tesserocr.PyTessBaseAPI(
                path=f"{str(data.folder).rstrip('/')}/",
                lang=data.language,
                psm=tesserocr.PSM.AUTO,
                variables={"debug_file": os.devnull},
            )
        except RuntimeError as error:
            raise StageFailed(Reason.OCR_FAILED, f"Tesseract does not start with {data}: {error}") from error
        tesserocr.set_leptonica_log_level(tesserocr.LeptLogLevel.NONE)

    def recognise(self, sheet: Sheet) -> Reading:
        api = self._api
        try:
            api.SetImageBytes(sheet.gray, sheet.width, sheet.height, 1, sheet.width)
            api.SetSourceResolution(sheet.dpi)
            if not api.Recognize():
                raise StageFailed(Reason.OCR_FAILED, "Tesseract gave up on the page")
            words = [(word, confidence) for word, confidence in api.MapWordConfidences() if word.strip()]
            return _reading(api.GetUTF8Text() if words else "", words)
        except RuntimeError as error:
            raise StageFailed(Reason.OCR_FAILED, f"Tesseract: {error}") from error
        finally:
            api.Clear()


class Pytesseract:
    """The `tesseract` program, once per page. One thread each: as it comes, it is seven times slower for fighting
    over the cores. Pages go to it as PPM, which costs 22 ms to write where PNG costs 144."""

    def __init__(self, languages: Sequence[str]) -> None:
        import pytesseract

        os.environ["OMP_THREAD_LIMIT"] = "1"
        self._module: Any = pytesseract
        program = shutil.which("tesseract")
        if program is None:
            raise StageFailed(Reason.OCR_FAILED, "the tesseract program cannot be run: it is not installed")
        self._config, self._language = "--psm 3", "+".join(languages)
        if not program_languages(program).issuperset(languages):
            # Not in the program's own folder; perhaps in the others.
            data = find_tessdata(languages)
            self._config += f' --tessdata-dir "{data.folder}"'
            self._language = data.language

    def recognise(self, sheet: Sheet) -> Reading:
        import PIL.Image

        image = PIL.Image.frombytes("L", (sheet.width, sheet.height), sheet.gray)
        image.format = "PPM"
        try:
            table = self._module.image_to_data(
                image,
                lang=self._language,
                config=f"{self._config} --dpi {sheet.dpi}",
                output_type=self._module.Output.DICT,
            )
        except (self._module.TesseractError, OSError, RuntimeError, ValueError) as error:
            raise StageFailed(Reason.OCR_FAILED, f"the tesseract program: {error}") from error
        return _reading_of(table)


def _reading(text: str, words: Sequence[tuple[str, float]]) -> Reading:
    letters = [(sum(map(str.isalnum, word)), confidence) for word, confidence in words]
    return Reading(
        text=text,
        confidence=sum(confidence for _, confidence in words) / len(words) if words else 100.0,
        words=len(words),
        weight=sum(count * (confidence - _DOUBTFUL) for count, confidence in letters),
    )


def _reading_of(table: Mapping[str, Sequence[Any]]) -> Reading:
    """Words of Tesseract's TSV, in the page's lines, an empty line between paragraphs."""
    text, words = list[str](), list[tuple[str, float]]()
    last: tuple[object, ...] = ()
    for index, found in enumerate(table["text"]):
        word, confidence = str(found), float(table["conf"][index])
        if confidence < 0 or not word.strip():
            continue
        paragraph = (table["block_num"][index], table["par_num"][index])
        place = (*paragraph, table["line_num"][index])
        if place == last:
            text += [word] if _UNSPACED.match(word) and _UNSPACED.match(text[-1][-1]) else [" ", word]
        else:
            text += [("\n" if paragraph == last[:2] else "\n\n") if last else "", word]
        last = place
        words.append((word, confidence))
    return _reading("".join(text), words)
