"""What a confined worker can still do, tried by real workers, beside the same worker without a sandbox."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docx
import numpy as np
import pytest

from engine.clock import SystemClock
from engine.document import Document, Page
from engine.model import Failure, Kind, Stage
from engine.processes import is_alive
from engine.reasons import Reason
from engine.workers.sandbox import MAX_FILE_BYTES, find_protections
from engine.workers.supervisor import Ended, Finished, Lost, Supervisor
from tests.conftest import REPOSITORY
from tests.files import CALENDAR, mail, mbox, picture, scanned_pdf, text_pdf
from tests.mill import PROGRAM, Mill
from tests.saboteurs.confined.extract import DEEDS

pytestmark = pytest.mark.timeout(120)
_HERE = find_protections()
#: However busy the machine: polls of 0.1 s.
PATIENCE_POLLS = 600
#: All but these are refused.
ALLOWED = frozenset(
    {
        *("write a result", "start a thread", "signal itself", "set its own limit", "measure its peak anew"),
        *("make a temporary file", "read beside a closed folder", "say its rights"),
    }
)
#: Not every file system has marks (extended attributes) or leases, and some machines promise no more memory than they
#: have, so that nothing is said of how these go outside.
PERHAPS_OUTSIDE = frozenset({"mark another's file", "hold up who opens its file", "have more addresses"})
#: To read what root may read: CAP_DAC_READ_SEARCH.
READING = 1 << 2


class Book:
    """Nobody has to end these workers for us."""

    def note_worker(self, pid: int, started: float) -> None:
        assert is_alive(pid, started)

    def note_worker_gone(self, pid: int) -> None:
        pass


@contextmanager
def supervised(spool: Path, package: str, sandbox: str, private: Sequence[Path] = ()) -> Iterator[Supervisor]:
    """A supervisor whose workers are all gone afterwards."""
    one = Supervisor(
        spool=spool, book=Book(), clock=SystemClock(), package=package, sandbox=sandbox, private=[*private, spool]
    )
    try:
        yield one
    finally:
        one.close()


Outcome = Mapping[str, Any] | Failure


def outcomes_of(
    one: Supervisor,
    stage: Stage,
    options: Mapping[str, Any],
    files: Mapping[str, bytes],
    orders: Sequence[Mapping[str, Any]],
    outbox: dict[str, bytes] | None = None,
) -> list[Outcome]:
    """One unit of a new worker: for each order its result or failure. `outbox`: is given what it left there."""
    worker = one.start(stage, options)
    one.reserve(worker, 1, len(orders))
    for name, data in files.items():
        (worker.inbox / name).write_bytes(data)
    one.assign(worker, orders, deadlines=[60.0] * len(orders), promised_bytes=0, limit_bytes=0)
    outcomes: list[Outcome] = []
    for _ in range(PATIENCE_POLLS):
        for report in one.poll(0.1):
            match report:
                case Ended():
                    outcomes.append(report.failure or report.result)
                case Lost():
                    return [*outcomes, report.failure]
                case Finished():
                    if outbox is not None:
                        outbox.update((file.name, file.read_bytes()) for file in worker.outbox.glob("*.*"))
                    one.retire(worker)
                    return outcomes
    raise AssertionError(f"the unit did not end; so far: {outcomes}")


@contextmanager
def surroundings(place: Path) -> Iterator[dict[str, Any]]:
    """Another user's file, and whoever listens on this machine: what a deed is aimed at."""
    folder = place / "tree" / "indexes" / "ann"
    folder.mkdir(parents=True)
    (folder / "letter").write_text("for ann alone")
    (place / "tree" / "open").write_text("beside a library")
    (place / "tree" / "libheron.so.1").touch()
    (folder / "spare").write_text("to be removed")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        udp.bind(("127.0.0.1", 0))
        unix.bind(str(place / "line"))
        unix.listen()
        yield {
            "open": str(place / "tree" / "open"),
            "beside": str(place / "beside"),
            "path": str(folder / "letter"),
            "spare": str(folder / "spare"),
            "folder": str(folder),
            "parent": os.getpid(),
            "tcp": tcp.getsockname()[1],
            "udp": udp.getsockname()[1],
            "line": str(place / "line"),
            "bytes": MAX_FILE_BYTES + 1,
            "name": "given",
        }


@pytest.fixture
def confined() -> None:
    """Skips, and says why, where this kernel cannot confine anybody."""
    if _HERE.lacking:
        pytest.skip(f"no worker can be confined here: {'; '.join(_HERE.lacking.values())}")


@pytest.fixture(autouse=True)
def _imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def test_a_confined_worker_can_do_its_work_and_nothing_else(
    confined: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every deed succeeds in a worker without a sandbox; within, all that is not its work is refused, even where the
    other users' folder lies in a tree that the worker may read."""
    # The first folder holds libraries; the others are somebody's that was careless.
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{tmp_path / 'tree'}:.:/:{tmp_path}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside").write_text("for nobody")
    with surroundings(tmp_path) as told:
        private = [Path(told["folder"]).parent]
        tried = {}
        for sandbox in ("strict", "off"):
            orders = [{"do": deed, **told} for deed in DEEDS]
            with supervised(tmp_path / sandbox, "tests.saboteurs.confined", sandbox, private) as one:
                found = outcomes_of(one, Stage.EXTRACT, {}, {"given": b"bytes"}, orders)
            assert len(found) == len(orders), found[-1]
            assert not any(isinstance(outcome, Failure) for outcome in found), found
            assert [one["said"] for deed, one in zip(DEEDS, found, strict=True) if "peak" in deed] == ["True"]
            (rights,) = (one["said"] for deed, one in zip(DEEDS, found, strict=True) if deed == "say its rights")
            assert sandbox == "off" or all(right in (0, READING) for right in json.loads(rights))
            tried[sandbox] = {deed: outcome["refused"] for deed, outcome in zip(DEEDS, found, strict=True)}
    assert {deed for deed, refused in tried["off"].items() if refused} <= PERHAPS_OUTSIDE
    assert {deed for deed, refused in tried["strict"].items() if not refused} == ALLOWED
    assert set(tried["strict"].values()) == {"", "EPERM", "EACCES", "EFBIG", "ENOMEM", "EAGAIN"}


def test_a_result_that_is_too_large_is_its_items_failure(confined: None, tmp_path: Path) -> None:
    """The limit of one file ends no worker: the item has failed as a bomb, and the next one is read."""
    with supervised(tmp_path / "spool", "tests.saboteurs.confined", "strict") as one:
        orders = [{"do": "make a huge file", "bytes": MAX_FILE_BYTES + 1, "raise": True}, {"do": "start a thread"}]
        huge, after = outcomes_of(one, Stage.EXTRACT, {}, {}, orders)
    assert isinstance(huge, Failure)
    assert (huge.reason, huge.detail) == (Reason.BOMB, "its result is larger than a worker may write: 4 GiB")
    assert after == {"refused": "", "said": "True"}


def done_by(
    spool: Path, stage: Stage, options: Mapping[str, Any], files: Mapping[str, bytes], *orders: Mapping[str, Any]
) -> tuple[list[Outcome], dict[str, bytes]]:
    """What a confined worker of the engine makes of some orders: results, and what is in its outbox."""
    outbox: dict[str, bytes] = {}
    with supervised(spool, "engine.workers", "strict", [spool.parent]) as one:
        outcomes = outcomes_of(one, stage, options, files, orders, outbox)
    assert not any(isinstance(outcome, Failure) for outcome in outcomes), outcomes
    return outcomes, outbox


def test_every_kind_of_file_is_read_within(confined: None, tmp_path: Path) -> None:
    """Stage extract loads each of its readers after the doors are closed."""
    document = docx.Document()
    document.add_paragraph("a heron on the quay")
    document.save(str(tmp_path / "one.docx"))
    picture("a heron on the quay").save(tmp_path / "one.png")
    picture("a heron on the quay").save(tmp_path / "one.jpg")
    files = {
        "one.pdf": text_pdf(tmp_path / "one.pdf", "a heron on the quay").read_bytes(),
        "one.docx": (tmp_path / "one.docx").read_bytes(),
        "one.png": (tmp_path / "one.png").read_bytes(),
        "one.jpg": (tmp_path / "one.jpg").read_bytes(),
        "one.eml": mail("Heron", "a heron on the quay", ("heron.txt", b"a heron", "text/plain")),
        "one.mbox": mbox(tmp_path / "one.mbox", mail("Heron", "a heron")).read_bytes(),
        "one.ics": CALENDAR.encode(),
        "one.html": b"<html><body><p>a heron on the quay</p></body></html>",
        "one.csv": b"bird,place\nheron,quay\n",
        # No UTF-8: the guess at its encoding loads a library of its own.
        "one.txt": "der Reiher am Kai, schön und grau".encode("cp1252"),
    }
    orders = [{"file": name, "name": name, "kind": "file", "prefix": f"u1-{at}"} for at, name in enumerate(files)]
    outcomes, outbox = done_by(tmp_path / "spool", Stage.EXTRACT, {"ocr": True}, files, *orders)
    for name, outcome in zip(files, outcomes, strict=True):
        assert isinstance(outcome, Mapping)
        found = json.loads(outbox[outcome["document"]])
        assert "needs_ocr" in outcome, name
        if outcome["needs_ocr"]:
            assert name in ("one.png", "one.jpg")
        else:
            assert re.search("[Hh]eron|Reiher|mailbox of 1 message|lighthouse", json.dumps(found)), name


@pytest.mark.parametrize("backend", ["tesserocr", "pytesseract"])
def test_pages_are_recognised_within(confined: None, tmp_path: Path, backend: str) -> None:
    """Tesseract in the process, and as a program: then programs may be run, confined to the same two folders."""
    if backend == "pytesseract" and shutil.which("tesseract") is None:
        pytest.skip("the tesseract program is not installed")
    data = scanned_pdf(tmp_path / "one.pdf", "THE HERON STANDS\nON THE QUAY").read_bytes()
    order = {"file": "one.pdf", "media_type": "application/pdf", "page": 1, "prefix": "u1-0"}
    options = {"languages": ["eng"], "backend": backend}
    outcomes, outbox = done_by(tmp_path / "spool", Stage.OCR, options, {"one.pdf": data}, order)
    assert "HERON" in json.loads(outbox[outcomes[0]["page"]])["text"]
    assert list(outbox) == ["u1-0.page.json"]


@pytest.mark.parametrize("embedder", ["builtin", "fast"])
def test_vectors_are_made_within(confined: None, tmp_path: Path, embedder: str) -> None:
    """Both models load their libraries and weights, and know near from far."""
    texts = ["a heron on the quay", "a grey bird by the water", "the price of copper wire"]
    files = {"texts": json.dumps(texts).encode()}
    order = {"file": "texts", "prefix": "u1-0"}
    outcomes, outbox = done_by(tmp_path / "spool", Stage.EMBED, {"embedder": embedder}, files, order)
    rows = np.frombuffer(outbox["u1-0.vectors.f32"], "<f4").reshape(3, outcomes[0]["dim"])
    assert rows[0] @ rows[1] > rows[0] @ rows[2]


def test_chunks_and_indexes_are_made_within(confined: None, tmp_path: Path) -> None:
    """The stages without models of their own: one reads a tokenizer, the other writes a FAISS file."""
    pages = (Page(number=1, text="a heron on the quay"),)
    document = Document(kind=Kind.FILE, media_type="text/plain", title="Heron", pages=pages)
    files = {"document": json.dumps(document.to_json()).encode()}
    options = {"measure": "minilm", "max_tokens": 254}
    done, _ = done_by(tmp_path / "one", Stage.CHUNK, options, files, {"file": "document", "prefix": "u1-0"})
    assert done[0]["count"] > 0
    files = {"vectors": np.eye(4, dtype="<f4").tobytes(), "ids": np.arange(4, dtype="<i8").tobytes()}
    order = {"file": "vectors", "ids": "ids", "dim": 4, "prefix": "u1-0"}
    done, outbox = done_by(tmp_path / "two", Stage.INDEX, {}, files, order)
    assert done[0]["count"] == 4
    assert list(outbox) == ["u1-0.faiss"]


#: Runs a program where Landlock is forbidden, as old containers do: landlock_create_ruleset is answered with EPERM.
WITHOUT_LANDLOCK = """
import ctypes, os, struct, sys
from engine.workers import landlock
code = b"".join(struct.pack("=HBBI", *one) for one in (
    (0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)))
buffer = ctypes.create_string_buffer(code, len(code))
landlock.forbid_new_rights()
head = struct.pack("@HP", 4, ctypes.addressof(buffer))
assert ctypes.CDLL(None).prctl(22, 2, head) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_run_says_what_it_lacks(confined: None, tmp_path: Path) -> None:
    """In a container without Landlock a run goes on with what there is, and status says so; a strict one ends with
    code 4 before anything is done."""
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "note.txt").write_text("a heron on the quay")
    mill = Mill(tmp_path, NIGHTMILL_EMBEDDER="none")

    def run(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-c", WITHOUT_LANDLOCK, *PROGRAM, *words]
        environ = {**mill.environ, **settings}
        return subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=100)

    try:
        mill.run("users", "add", "ann", f"folder:{tmp_path / 'files'}")
        strict = run("init", NIGHTMILL_SANDBOX="strict")
        assert strict.returncode == 4
        assert "NIGHTMILL_SANDBOX = strict" in strict.stderr
        assert "the container forbids Landlock" in strict.stderr
        assert mill.ledger("SELECT * FROM runs") == []
        assert "confined by: seccomp (the container forbids Landlock)" in run("status").stdout
        assert run("init").returncode == 0
        assert mill.ledger("SELECT path, state FROM items") == [("note.txt", "indexed")]
    finally:
        mill.stop_scheduler()
