"""Stage `ocr`: one page of a PDF or a picture -> its text.

Rule: one page in memory at a time, gray and bounded. Tesseract stays warm for the worker's whole life; the file that
the last page came from stays open, as its other pages usually follow. A page that was read badly is read once more,
in all for at most two and a half times the cost of one reading, and the better reading stays.

    order -> picture (sheet_sources) -> blank? -> sheet (sheets) -> reading (recognisers) -> good? -> Page as JSON
                                                    ^                                        |
                                                    +--- turned | larger | smoother, once ---+
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from engine.document import MAX_TEXT_CHARS, Method, Page
from engine.ports import Place
from engine.workers.reading import ask_memory, clean, tidy
from engine.workers.recognisers import Reading, Recogniser, open_recogniser
from engine.workers.sheet_sources import Source, identity_of, open_source

if TYPE_CHECKING:
    from engine.workers.sheets import Picture, Sheet

#: Good pages have a confidence of 88 and more, bad receipts 60 to 85. Read once more with the gaps in their letters
#: closed, those below 80 have 19.8 % errors instead of 22.2. Other segmentations (4, 6, 11) won nothing there.
_POOR: Final = 80.0
#: Pages upside down have 30 to 45: below this they may lie otherwise than they should.
_TURNED: Final = 60.0
#: What a page that is turned rightly has more than one that is not; otherwise it stays as it is.
_TURNED_GAIN: Final = 15.0
#: Share of a page's height that is read to see whether it is turned rightly.
_BAND: Final = 0.12
#: Pieces of lines that are seen for each word that is read: mostly 0.4 to 1.2. Beyond, lines were lost.
_LOST: Final = 6
#: Bytes that a pixel takes while it is looked at: the picture, its ink, the sheet and a copy of each.
_SHEET_BYTES: Final = 6


def open_stage(options: Mapping[str, Any]) -> OcrStage:
    """Options: {"languages": ["eng", ...], "backend": "auto" | "tesserocr" | "pytesseract"}.

    Nothing is loaded before the first page: what is missing then is that page's failure, with words for people.
    """
    languages = [str(language) for language in options.get("languages") or ["eng"]]
    return OcrStage(languages, str(options.get("backend") or "auto"))


class OcrStage:
    """A recogniser and the file that was opened last."""

    def __init__(self, languages: Sequence[str], backend: str) -> None:
        self._languages = languages
        self._backend = backend
        self._recogniser: Recogniser | None = None
        self._opened: Source | None = None

    def run(self, order: Mapping[str, Any], place: Place) -> Mapping[str, Any]:
        """Order: {"file": name in the inbox, "media_type": as `extract` found it, "page": number from 1, "prefix"}.

        Writes `<prefix>.page.json` (Page.to_json: number, text, method "ocr", confidence 0 to 100) and returns
        {"page": its name}. Raises StageFailed: ocr_failed, ocr_language_missing, damaged, bomb, encrypted.
        """
        number = int(order["page"])
        if self._recogniser is None:
            self._recogniser = open_recogniser(self._languages, self._backend)
        source = self._open(place, str(order["file"]), str(order["media_type"]))
        reading = _read(source, number, place, self._recogniser)
        page = Page(
            number=number,
            text=clean(tidy(reading.text))[:MAX_TEXT_CHARS],
            method=Method.OCR,
            confidence=min(100.0, max(0.0, reading.confidence)),
        )
        name = f"{order['prefix']}.page.json"
        (place.outbox / name).write_text(json.dumps(page.to_json(), ensure_ascii=False), encoding="utf-8")
        place.progress(1, 1)
        return {"page": name}

    def _open(self, place: Place, name: str, media_type: str) -> Source:
        path = place.inbox / name
        if self._opened is not None and self._opened.identity != identity_of(path):
            self._opened.close()
            self._opened = None
        if self._opened is None:
            self._opened = open_source(path, media_type)
        return self._opened


def _read(source: Source, number: int, place: Place, recogniser: Recogniser) -> Reading:
    from engine.workers import sheets

    picture = source.picture(number, place)
    place.progress(0, 1)
    if sheets.is_blank(picture):
        return Reading(text="", confidence=100.0, words=0, weight=0.0)
    ask_memory(place, picture.size * _SHEET_BYTES, f"reading {picture.shape[1]} x {picture.shape[0]} pixels")
    picture = sheets.lighten(picture)
    look = sheets.look_at(picture)
    if source.finer and look.scale > 1.0:
        # Small print: what was rendered away is still in the file.
        scale = sheets.fitting(look.scale, picture.size)
        picture = sheets.lighten(source.picture(number, place, scale))
        look = sheets.look_at(picture)
    sheet = sheets.lay_out(picture, look)
    first = recogniser.recognise(sheet)
    if not _is_poor(first, sheet):
        return first
    place.progress(0, 1)
    better = None if first.confidence >= _TURNED else _turned(picture, first, recogniser)
    if better is None and (nearer := look.nearer(_has_lost_lines(first, sheet))) is not None:
        better = sheets.lay_out(picture, nearer)
    best = max(first, recogniser.recognise(better or sheet.smoother()), key=lambda reading: reading.weight)
    # Where lines are seen and not a word of them is read, that there is nothing is not sure at all.
    return best if best.words else replace(best, confidence=0.0)


def _is_poor(reading: Reading, sheet: Sheet) -> bool:
    return reading.confidence < _POOR or _has_lost_lines(reading, sheet)


def _has_lost_lines(reading: Reading, sheet: Sheet) -> bool:
    return sheet.pieces > _LOST * (reading.words + 1)


def _turned(picture: Picture, first: Reading, recogniser: Recogniser) -> Sheet | None:
    """The sheet of the picture upside down or on its side, if a band of it can be read there; else None."""
    from engine.workers import sheets

    for quarters in (2, 1, 3):
        turned = sheets.turned(picture, quarters)
        sheet = sheets.lay_out(turned, sheets.look_at(turned))
        trial = recogniser.recognise(sheet.band(_BAND))
        if trial.words and trial.confidence >= max(_TURNED, first.confidence + _TURNED_GAIN):
            return sheet
    return None
