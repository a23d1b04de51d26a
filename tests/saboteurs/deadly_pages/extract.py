"""The real stage, and MuPDF as a file may make it behave: a page says what reading it does to the worker."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

from engine.workers import extract, read_pdf
from engine.workers.extract import ExtractStage

_page, _attachments = read_pdf._page, read_pdf._attachments


def open_stage(options: Mapping[str, Any]) -> ExtractStage:
    """The options of the real stage."""
    read_pdf._page = _deadly_page
    read_pdf._attachments = _deadly_attachments
    return extract.open_stage(options)


def _deadly_page(pdf: Any, *rest: Any) -> Any:
    page = _page(pdf, *rest)
    if "segmentation fault" in page.text:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "runs out of memory" in page.text:
        raise MemoryError
    return page


def _deadly_attachments(pdf: Any, *rest: Any) -> Any:
    if pdf.embfile_count():
        raise MemoryError
    return _attachments(pdf, *rest)
