"""What does the engine see in this file? One file through the same workers, limits and OCR that a run uses.

Rule: nothing is stored. The work is done under tokens of the desk like any other, in the interactive lane.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.clock import SystemClock
from engine.desk import Desk
from engine.document import MAX_NOTES, MAX_PART_BYTES, Document, Page, cut_to_limit, merge_page
from engine.errors import MalformedMessage, UsageError
from engine.model import Failure, Lane, Stage, TokenKind, UserId
from engine.opening import desk_for, private_folders, require_sandbox
from engine.plan import make_plan
from engine.policy import estimates, spool
from engine.policy.estimates import Estimate
from engine.policy.peaks import Peaks
from engine.ports import Ask, FetchFailed, Return
from engine.promises import TELL_SECONDS, Promises
from engine.reasons import Reason
from engine.settings import Settings
from engine.sources import beneath
from engine.spool import spool_for
from engine.workers import results
from engine.workers.supervisor import Bounds, Ended, Finished, Lost, Report, Supervisor, Swollen, Worker

#: No user can have this name (it begins with a dash), so nobody's share is touched.
_NOBODY = UserId("-extract")


def read_file(settings: Settings, path: Path) -> Document | Failure:
    """Extract, with OCR where it is needed, and return the document, or why there is none.

    Raises UsageError when there is no such file, CannotRunError when no worker or scheduler can be had.
    """
    if not path.is_file():
        raise UsageError(f"{path} is not a file; name one to look into")
    require_sandbox(settings)
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with spool_for(settings) as place, desk_for(settings) as desk:
        supervisor = Supervisor(
            spool=place / "workers",
            book=desk,
            clock=SystemClock(),
            bounds=Bounds(stall_seconds=settings.stall_seconds, wall_seconds=settings.unit_seconds),
            sandbox=settings.sandbox,
            private=private_folders(settings),
        )
        try:
            return _Reading(settings, desk, supervisor, path).read()
        finally:
            supervisor.close()


class _Reading:
    def __init__(self, settings: Settings, desk: Desk, supervisor: Supervisor, path: Path) -> None:
        self._plan = make_plan(settings)
        self._desk, self._supervisor, self._path = desk, supervisor, path
        self._promises = Promises(supervisor, SystemClock(), lambda: desk.limits)
        self._units = 0

    def read(self) -> Document | Failure:
        guess = self._fitted(
            estimates.extraction(size_bytes=self._path.stat().st_size, ending=self._path.suffix.lower())
        )
        order = {"name": self._path.name, "kind": "file"}
        done = self._do(Stage.EXTRACT, order, guess, "document")
        if isinstance(done, Failure):
            return done
        try:
            document = Document.from_json(done)
        except MalformedMessage as error:
            return Failure(reason=Reason.PROTOCOL, detail=str(error))
        wanting = {page.number: page.pixels for page in document.pages if page.needs_ocr}
        if not wanting:
            return document
        if not self._plan.ocr:
            return replace(document, notes=(*document.notes, f"{len(wanting)} pages were not read: OCR is off"))
        return self._with_ocr(document, wanting)

    def _with_ocr(self, document: Document, wanting: Mapping[int, int]) -> Document:
        """wanting: numbers of pages -> their pixels, 0 where unknown."""
        recognised: dict[int, Page] = {}
        notes = list(document.notes)
        # What the reader holds is not needed any more, and may be what the pages lack.
        self._end_workers()
        for number, pixels in wanting.items():
            order = {"media_type": document.media_type, "page": number}
            guess = self._fitted(estimates.ocr_page(media_type=document.media_type, pixels=pixels))
            done = self._do(Stage.OCR, order, guess, "page")
            if not isinstance(done, Failure):
                try:
                    recognised[number] = replace(Page.from_json(done), number=number, needs_ocr=False)
                    continue
                except MalformedMessage as error:
                    done = Failure(reason=Reason.PROTOCOL, detail=str(error))
            notes.append(f"page {number} could not be read: {done.reason}: {done.detail}"[:1000])
        pages = tuple(merge_page(page, recognised.get(page.number)) for page in document.pages)
        whole = replace(document, pages=pages, notes=tuple(notes[:MAX_NOTES]))
        return cut_to_limit(whole, self._plan.max_text_bytes)

    def _fitted(self, estimate: Estimate) -> Estimate:
        """Nothing is learned of a single file, and nothing that was learned is looked up: the worst case will do."""
        return estimates.fitted(estimate, peaks=Peaks(), budget_bytes=self._desk.limits.memory_limit_bytes)

    def _do(self, stage: Stage, order: Mapping[str, Any], estimate: Estimate, field: str) -> object:
        """One order: the JSON of the result, or the Failure. What ran out of memory is done once more, with all."""
        done = self._do_once(stage, order, estimate, field)
        ran_out = isinstance(done, Failure) and done.reason is Reason.OUT_OF_MEMORY
        if ran_out and estimate.memory_bytes < estimate.ceiling_bytes:
            self._end_workers()
            done = self._do_once(stage, order, replace(estimate, memory_bytes=estimate.ceiling_bytes), field)
        return done

    def _end_workers(self) -> None:
        for worker in self._supervisor.workers:
            self._supervisor.retire(worker)

    def _do_once(self, stage: Stage, order: Mapping[str, Any], estimate: Estimate, field: str) -> object:
        """One unit under one token."""
        self._units += 1
        lease = self._lease(estimate)
        try:
            worker = self._supervisor.find_idle(stage) or self._supervisor.start(stage, self._plan.options[stage])
            self._supervisor.reserve(worker, self._units, 1)
            name = f"u{self._units}-0"
            try:
                with beneath.open_single_for_fetch(str(self._path)) as descriptor:
                    beneath.copy_file(
                        descriptor,
                        worker.inbox / f"{name}.bytes",
                        str(self._path),
                        _size_of,
                        max_size_bytes=MAX_PART_BYTES,
                    )
            except FetchFailed as error:
                self._supervisor.release(worker)
                return error.failure
            full = {**order, "file": f"{name}.bytes", "prefix": name}
            promised = estimate.memory_bytes
            limit = self._promises.begin(lease, worker, promised_bytes=promised, ceiling_bytes=estimate.ceiling_bytes)
            self._supervisor.assign(
                worker, [full], deadlines=[estimate.deadline], promised_bytes=promised, limit_bytes=limit
            )
            return self._wait(worker, field)
        finally:
            self._promises.end(lease)
            self._desk.exchange(returns=[Return(lease_id=lease, cost_seconds=estimate.seconds)])

    def _lease(self, estimate: Estimate) -> Any:
        ask = Ask(
            ask_id=f"extract-{self._units}",
            user=_NOBODY,
            lane=Lane.INTERACTIVE,
            kind=TokenKind.CPU,
            cost_seconds=estimate.seconds,
            memory_bytes=estimate.memory_bytes,
        )
        answer = self._desk.exchange(asks=[ask], patience_seconds=0.05)
        while not answer.grants:
            answer = self._desk.exchange(patience_seconds=0.05)
        return answer.grants[0].lease_id

    def _wait(self, worker: Worker, field: str) -> object:
        outcome: object = None
        while True:
            for report in (*self._supervisor.poll(TELL_SECONDS), *self._talk_of_memory()):
                match report:
                    case Swollen():
                        self._promises.note_swollen(report)
                    case Ended() if report.failure is not None:
                        outcome = report.failure
                    case Ended():
                        try:
                            outcome = results.read_json(
                                worker.outbox,
                                report.result,
                                field,
                                most=spool.DOCUMENT_JSON_BYTES,
                                most_chars=spool.DOCUMENT_JSON_CHARS,
                            )
                        except MalformedMessage as error:
                            outcome = Failure(reason=Reason.PROTOCOL, detail=str(error))
                    case Finished():
                        self._supervisor.release(worker)
                        return outcome
                    case Lost():
                        return report.failure

    def _talk_of_memory(self) -> list[Report]:
        """Who works is told to the desk, and asked to be promised more where it needs that."""
        if not self._promises.are_due:
            return []
        claims = self._promises.claims()
        return self._promises.heed(claims, self._desk.exchange(claims=claims, explain=False))


def _size_of(status: Any) -> str:
    return str(status.st_size)


def to_json(path: Path, found: Document | Failure) -> dict[str, Any]:
    """As `nightmill extract --json` prints it."""
    if isinstance(found, Failure):
        return {"path": str(path), "reason": found.reason.value, "detail": found.detail}
    pages = [
        {"number": page.number, "method": page.method.value, "confidence": page.confidence, "text": page.text}
        for page in found.pages
    ]
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
        "pages": pages,
    }
