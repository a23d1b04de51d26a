"""What does the engine see in this file? One file on the way that a run takes: workers, limits, page ranges, blame.

Rule: it is a run, in a place of its own inside the spool, which is gone afterwards: a ledger and an index for one user
with one file. Its scheduler, and so all limits, are those of the data directory; nothing of it is stored there.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine import guards
from engine.coordinator import EXIT_INTERRUPTED
from engine.document import Document, Page
from engine.errors import NO_ROOM, CannotRunError, UsageError
from engine.model import Failure, ItemKey, ItemState, Lane, UserId
from engine.opening import make_data_dir
from engine.plan import make_plan
from engine.ports import ItemRecord
from engine.reasons import Reason
from engine.run import open_own_ledger, run
from engine.settings import INDEXES_FOLDER, Settings
from engine.sizes import format_size
from engine.sources.beneath import key_of
from engine.sources.rules import Rules
from engine.sources.uri import SourceUri
from engine.spool import spool_for
from engine.survey import Orders
from engine.telemetry import Reporter
from indexes import paths
from indexes.writer import open_writer


def read_file(settings: Settings, path: Path, reporter: Reporter) -> Document | Failure:
    """Extract, with OCR where it is needed, and return the document, or why there is none.

    Raises UsageError when there is no such file, CannotRunError when no worker or scheduler can be had, and
    KeyboardInterrupt when it was interrupted.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not a file; name one to look into")
    make_data_dir(settings)
    with spool_for(settings) as spool, tempfile.TemporaryDirectory(dir=spool, prefix="look-") as folder:
        home = Path(folder)
        try:
            size, free = path.stat().st_size, guards.disk_free_bytes(settings.data_dir)
            if free - size < settings.disk_reserve_bytes:
                detail = f"a copy takes {format_size(size)}, {format_size(free)} are free, less NIGHTMILL_DISK_RESERVE"
                return Failure(reason=Reason.DISK_FULL, detail=detail)
            _lay_by(path, home / "files")
        except OSError as error:
            reason = Reason.DISK_FULL if error.errno in NO_ROOM else Reason.SOURCE_UNREADABLE
            return Failure(reason=reason, detail=f"{path}: {error.strerror}")
        # Nobody searches it: no vectors. All of it is wanted, whatever a trial would leave out.
        own = replace(settings, data_dir=home / "var", embedder="none", debug_mode=False)
        return _run(own, settings, home / "files", reporter)


def _lay_by(path: Path, folder: Path) -> None:
    """A copy of the file alone in a folder, under its own name. A second name for it would move its ctime: runs that
    copy it would take it for changed."""
    folder.mkdir(mode=0o700)
    shutil.copyfile(path, folder / path.name)


def _run(own: Settings, host: Settings, files: Path, reporter: Reporter) -> Document | Failure:
    # The scheduler knows it by this name, which no other process has.
    user = UserId(f"extract {os.getpid()}")
    make_data_dir(own)
    with closing(open_own_ledger(own)) as ledger:
        ledger.add_user(user, [str(SourceUri(scheme="folder", path=str(files), rules=Rules()))])
    orders = Orders(leave_parts=True)
    report = run(own, [user], kind="init", lane=Lane.INTERACTIVE, orders=orders, reporter=reporter, host=host)
    with closing(open_own_ledger(own)) as ledger:
        (source,) = ledger.sources(user)
        (name,) = os.listdir(files)
        found = ledger.find_trees(source.id, [ItemKey(key_of(name))])
    if report.exit_code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if not found:
        troubles = "; ".join(trouble.removeprefix(f"{user}: ") for trouble in report.troubles)
        raise CannotRunError(report.message or troubles or "the file was not found again")
    return _document_of(own, user, found[0], report.message)


def _document_of(own: Settings, user: UserId, item: ItemRecord, message: str) -> Document | Failure:
    if item.state is not ItemState.INDEXED:
        if item.reason is None:
            raise CannotRunError(message or "the run ended before the file was read")
        return Failure(reason=item.reason, detail=item.detail)
    with open_writer(paths.user_dir(own.data_dir / INDEXES_FOLDER, user)) as writer:
        read = writer.find_read(int(item.source), str(item.key))
        for version in make_plan(own).extracts:
            stored = writer.find_document(read.content, version) if read is not None else None
            if stored is not None:
                document = Document.from_json(json.loads(stored))
                unread = sum(page.needs_ocr for page in document.pages)
                notes = document.notes
                if unread and not any("OCR is off" in note for note in notes):
                    notes = (*notes, f"{unread} pages were not read: OCR is off")
                return replace(document, title=document.title or item.path.rpartition("/")[2], notes=notes)
    raise CannotRunError("the document was not found in the index that was made of it")


def to_json(path: Path, found: Document | Failure) -> dict[str, Any]:
    """As `nightmill extract --json` prints it."""
    if isinstance(found, Failure):
        return {"path": str(path), "reason": found.reason.value, "detail": found.detail}
    return {
        "path": str(path),
        "type": found.media_type,
        "kind": found.kind.value,
        "title": found.title,
        "facts": dict(found.facts),
        "notes": list(found.notes),
        "attachments": [
            {"name": part.name, "type": part.media_type, "size_bytes": part.size_bytes} for part in found.parts
        ],
        "text": "\n\n".join(page.text for page in found.pages if page.text.strip()),
        "pages": [_page_table(page) for page in found.pages],
    }


def _page_table(page: Page) -> dict[str, Any]:
    """header, footer: how many lines at the top and at the bottom stand on other pages too."""
    return {
        "number": page.number,
        "label": page.label,
        "method": page.method.value,
        "confidence": page.confidence,
        "header": page.header,
        "footer": page.footer,
        "text": page.text,
    }
