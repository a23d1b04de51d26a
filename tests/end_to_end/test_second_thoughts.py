"""What happens to items after they were indexed once: twins, losses, changes of mind."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
from pathlib import Path

import pymupdf

from engine.sources.folder import stamp
from indexes.records import Chunk
from indexes.writer import open_writer
from tests import files
from tests.mill import PROGRAM, Mill, contents_of, killed_at_the_end, wait_until


def test_two_copies_of_a_scan_are_both_read_whole(mill: Mill, tmp_path: Path) -> None:
    """The same bytes under two names: every page of both is found."""
    home = tmp_path / "home"
    home.mkdir()
    pages = [f"Page {number} of the logbook\nabout phalaropes" for number in range(1, 8)]
    scan = files.scanned_pdf(home / "first.pdf", *pages).read_bytes()
    (home / "twin.pdf").write_bytes(scan)
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init")
    index = mill.data_dir / "indexes" / "ann"
    read: dict[str, set[int]] = {}
    for row in contents_of(index):
        path, kind, page = row[3], row[5], row[6]
        if kind == "file_chunk":
            read.setdefault(path, set()).add(page)
    assert read == {"first.pdf": set(range(1, 8)), "twin.pdf": set(range(1, 8))}
    titles = {hit["path"]: hit["title"] for hit in mill.json("search", "ann", "phalaropes")["hits"]}
    assert titles == {"first.pdf": "first.pdf", "twin.pdf": "twin.pdf"}


def test_a_new_name_is_a_new_title(mill: Mill, tmp_path: Path) -> None:
    """A renamed file is shown by its new name."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "old.txt").write_text("All about llamas.")
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init")
    (home / "old.txt").rename(home / "new.txt")
    mill.run("init")
    assert [(hit["title"], hit["path"]) for hit in mill.json("search", "ann", "llamas")["hits"]] == [
        ("new.txt", "new.txt")
    ]


def test_a_lost_ledger_costs_no_attachment(mill: Mill, tmp_path: Path) -> None:
    """Registered again after the ledger was lost, a user finds everything again, attachments included."""
    letters = [
        files.mail(
            f"Letter {number}", "See below.", (f"{number}.txt", f"Wigeon number {number}".encode(), "text/plain")
        )
        for number in range(3)
    ]
    mailbox = files.mbox(tmp_path / "post.mbox", *letters)
    mill.run("users", "add", "ann", f"mbox:{mailbox}")
    first = mill.json("init")["counts"]
    assert first["attachments_indexed"] == 3
    for left in mill.data_dir.glob("ledger.db*"):
        left.unlink()
    mill.run("users", "add", "ann", f"mbox:{mailbox}")
    assert mill.json("init")["counts"] == first
    assert set(mill.hits("ann", "wigeon number", "--mode", "keyword")) >= {
        f"post.mbox#{n + 1}/{n}.txt" for n in range(3)
    }


def test_attachments_leave_with_the_version_that_held_them(mill: Mill, tmp_path: Path) -> None:
    """A file that no longer holds an attachment no longer has one in the index."""
    home = tmp_path / "home"
    home.mkdir()
    with pymupdf.open() as document:
        document.new_page().insert_text((60, 60), "A report with an annex.")
        document.embfile_add("annex.txt", b"The secret of the whimbrels.")
        document.save(home / "report.pdf")
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init")
    assert mill.hits("ann", "whimbrels", "--mode", "keyword") == ["report.pdf/annex.txt"]
    files.text_pdf(home / "report.pdf", "A report without an annex.")
    report = mill.json("init")
    assert (report["counts"]["attachments"], report["work"]["removed"]) == (0, 1)
    assert mill.hits("ann", "whimbrels", "--mode", "keyword") == []


def test_what_cannot_be_read_any_more_is_not_found_any_more(mill: Mill, tmp_path: Path) -> None:
    """A text that became noise has failed, and its old words are gone."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "a.txt").write_text("All about godwits.")
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init")
    (home / "a.txt").write_bytes(bytes(range(256)) * 50)
    assert mill.json("init", code=3)["work"]["removed"] == 1
    assert mill.hits("ann", "godwits", "--mode", "keyword") == []
    assert mill.json("init", code=3)["work"]["removed"] == 0


def test_a_dry_run_says_what_would_be_done_and_does_nothing(mill: Mill, tmp_path: Path) -> None:
    """New, changed and gone items are counted; nothing is read, removed or written down."""
    home = tmp_path / "home"
    home.mkdir()
    for name in ("a", "b", "c"):
        (home / f"{name}.txt").write_text(f"The avocet {name}.")
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init")
    (home / "a.txt").unlink()
    (home / "b.txt").write_text("Another avocet.")
    (home / "d.txt").write_text("One more avocet.")
    found = mill.json("init", "--dry-run")["users"]
    assert [(one["new"], one["changed"], one["unchanged"], one["gone"]) for one in found] == [(1, 1, 1, 1)]
    assert mill.json("status")["found"] == 3
    assert mill.json("init")["work"]["removed"] == 1


def test_a_source_can_be_taken_away(mill: Mill, tmp_path: Path) -> None:
    """Its items can be found no longer from that moment on; the other sources stay."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(f"The dotterel of {name}.")
    mill.run("users", "add", "ann", f"folder:{tmp_path / 'one'}", f"folder:{tmp_path / 'two'}")
    mill.run("init")
    mill.run("users", "remove", "ann", f"folder:{tmp_path / 'one'}")
    assert mill.hits("ann", "dotterel", "--mode", "keyword") == ["two.txt"]
    assert mill.json("status", "ann")["found"] == 1
    assert b"dotterel of one" not in (mill.data_dir / "indexes" / "ann" / "index.db").read_bytes()
    assert set(mill.json("init")["work"].values()) == {0}
    assert "no source" in mill.run("users", "remove", "ann", "folder:/nowhere", code=2).stderr


def test_erasing_leaves_no_name(mill: Mill, tmp_path: Path) -> None:
    """After a run with troubles of a user, erasing leaves neither name nor folder anywhere in the data directory."""
    mill.run("users", "add", "Zebulon", f"folder:{tmp_path / 'missing-place'}")
    mill.run("init", code=3)
    mill.run("users", "erase", "Zebulon")
    data = b"".join(path.read_bytes() for path in mill.data_dir.rglob("*") if path.is_file())
    assert b"Zebulon" not in data
    assert b"missing-place" not in data
    assert "nothing of it is left" in mill.run("users", "erase", "Zebulon", code=2).stderr


def test_a_language_without_data_is_a_wrong_setting(mill: Mill, tmp_path: Path) -> None:
    """Exit code 2 before anything is read; with OCR off the language does not matter."""
    mill.run("users", "add", "ann", f"folder:{tmp_path}")
    wrong = {"NIGHTMILL_OCR_LANGUAGES": "eng,xyz", "NIGHTMILL_OCR_BACKEND": "tesserocr"}
    assert "no data for xyz" in mill.run("init", code=2, **wrong).stderr
    mill.run("init", NIGHTMILL_OCR="off", **wrong)


def test_the_exit_code_survives_a_closed_pipe(mill: Mill, tmp_path: Path) -> None:
    """Whoever pipes the output into `head` still learns that items failed; a full disk for output is said."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "empty.txt").touch()
    mill.run("users", "add", "ann", f"folder:{home}")
    script = 'set -o pipefail; "$@" | true'
    piped = subprocess.run(["bash", "-c", script, "bash", *PROGRAM, "init"], env=mill.environ, stderr=subprocess.PIPE)
    assert (piped.returncode, b"Traceback" in piped.stderr) == (3, False)
    with open("/dev/full", "w") as full:
        ended = subprocess.run([*PROGRAM, "users", "list"], env=mill.environ, stdout=full, stderr=subprocess.PIPE)
    assert (ended.returncode, b"Traceback" in ended.stderr) == (4, False)


def test_a_closed_terminal_interrupts_a_run(mill: Mill, tmp_path: Path) -> None:
    """SIGHUP ends a run as an interrupt does: code 130, no process and no spool left."""
    home = tmp_path / "home"
    home.mkdir()
    files.scanned_pdf(home / "long.pdf", *(f"Page {number} of many\n" * 12 for number in range(20)))
    mill.run("users", "add", "ann", f"folder:{home}")
    with killed_at_the_end(mill.start("init")) as run:
        wait_until(lambda: mill.busy_worker("ocr"), "a worker that recognises a page")
        run.send_signal(signal.SIGHUP)
        assert run.wait(timeout=20) == 130
    assert mill.workers() == []
    assert os.listdir(mill.data_dir / "spool") == []


def test_an_interrupted_rebuild_goes_on(mill: Mill, tmp_path: Path) -> None:
    """`reindex --full` that was interrupted is taken up by the next run, and each page is read once more, not twice."""
    home = tmp_path / "home"
    home.mkdir()
    files.scanned_pdf(home / "long.pdf", *(f"Page {number} of many\n" * 12 for number in range(12)))
    for number in range(10):
        (home / f"{number}.txt").write_text(f"Note {number} about knots.")
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init")
    with killed_at_the_end(mill.start("reindex", "ann", "--full")) as run:
        wait_until(lambda: mill.busy_worker("ocr"), "a worker that recognises a page")
        run.send_signal(signal.SIGINT)
        run.wait(timeout=20)
    mill.run("init")
    read = mill.ledger(
        "SELECT part, count(*) FROM attempts WHERE stage = 'ocr' AND reason IS NULL GROUP BY part HAVING count(*) != 2"
    )
    assert read == []
    assert mill.json("status", "ann")["indexed"] == 11


def test_every_attachment_is_read_again_in_a_rebuild(mill: Mill, tmp_path: Path) -> None:
    """`reindex --full` of many mails with attachments leaves none behind, whichever is taken up first."""
    letters = [
        files.mail(
            f"Letter {number}", "See below.", *((f"{n}.txt", f"Text {number}.{n}".encode(), "text/plain") for n in "ab")
        )
        for number in range(300)
    ]
    days = (f"From a@example.com Mon Feb {number % 27 + 1:2} 09:{number % 60:02}:00 2025\n" for number in range(300))
    mailbox = tmp_path / "post.mbox"
    mailbox.write_bytes(b"".join(day.encode() + letter + b"\n" for day, letter in zip(days, letters, strict=True)))
    mill.run("users", "add", "ann", f"mbox:{mailbox}")
    mill.run("init", NIGHTMILL_EMBEDDER="none")
    counts = mill.json("reindex", "ann", "--full", NIGHTMILL_EMBEDDER="none")["counts"]
    assert (counts["indexed"], counts["attachments_indexed"], counts["attachments_pending"]) == (300, 600, 0)
    assert not (mill.data_dir / "indexes" / "ann" / "parts").exists()


def test_dates_that_no_calendar_holds_break_nothing(mill: Mill, tmp_path: Path) -> None:
    """A mail from beyond the year 9999 is found, without a date; a question that is no text is refused."""
    letter = files.mail("From far away", "The curlew of the future.")
    far = letter.replace(b"Mon, 03 Feb 2025 09:15:00 +0100", b"Fri, 31 Dec 9999 23:59:59 -1200")
    assert far != letter
    mill.run("users", "add", "ann", f"mbox:{files.mbox(tmp_path / 'post.mbox', far)}")
    mill.run("init")
    hits = mill.json("search", "ann", "curlew")["hits"]
    assert [(hit["title"], hit["date"]) for hit in hits] == [("From far away", None)]
    assert "UTF-8" in mill.run("search", "ann", os.fsdecode(b"\xff"), code=2).stderr
    assert "UTF-8" in mill.run("failures", "explain", os.fsdecode(b"\xff"), code=2).stderr


def test_chunks_that_wait_are_not_those_of_another_extraction(mill: Mill, tmp_path: Path) -> None:
    """Cut from a document as an earlier release read it, and never published: they are cut anew."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "a.txt").write_text("Six dunlins.")
    mill.environ["NIGHTMILL_EMBEDDER"] = "none"
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init")
    folder = mill.data_dir / "indexes" / "ann"
    with sqlite3.connect(folder / "index.db") as database:
        source, content, chunking = database.execute("SELECT source, content, chunking FROM items").fetchone()
    database.close()
    # A twin of which the same bytes were read before, in another way.
    (home / "b.txt").write_text("Six dunlins.")
    mark = stamp(os.stat(home / "b.txt"))
    with open_writer(folder) as writer:
        writer.save_read(source, "b.txt", mark, content)
        writer.save_chunks(source, "b.txt", chunking, [Chunk(kind="file_chunk", text="stale", keywords="stale")])
    mill.run("init")
    assert mill.hits("ann", "stale", "--mode", "keyword") == []
    assert sorted(mill.hits("ann", "dunlins", "--mode", "keyword")) == ["a.txt", "b.txt"]
