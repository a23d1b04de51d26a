"""A scan of many pages: ranges of it on all cores, kills that cost a page at most, and what `extract` shows of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFont

from tests import files
from tests.mill import Mill, killed_at_the_end, wait_until

PAGES = 200
#: Words that OCR tells apart, so that the order of pages can be seen in the text.
WORDS = ("harbour", "lantern", "meadow", "orchard", "pigeon", "quarry", "river", "saddle", "timber", "window")


def long_scan(path: Path, pages: int) -> Path:
    """Small pages, each of two words: its number in words."""
    font = ImageFont.load_default(28)
    sheets = []
    for number in range(pages):
        sheet = Image.new("L", (420, 90), 255)
        text = f"{WORDS[number // 10 % 10]} {WORDS[number % 10]}"
        ImageDraw.Draw(sheet).text((20, 25), text, fill=0, font=font)
        sheets.append(sheet)
    sheets[0].save(path, "PDF", save_all=True, append_images=sheets[1:], resolution=150)
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """A folder with nothing but the scan."""
    home = tmp_path / "home"
    home.mkdir()
    return long_scan(home / "scan.pdf", PAGES)


def recognised(mill: Mill) -> int:
    """Pages that were read to the end, as the ledger knows while the run goes on (its end forgets the older ones)."""
    (count,) = mill.ledger("SELECT count(*) FROM attempts WHERE stage = 'ocr' AND reason IS NULL")[0]
    return int(count)


def test_a_killed_worker_in_the_middle_of_a_scan_repeats_no_finished_page(mill: Mill, scan: Path) -> None:
    """kill -9 of a worker that has read some of its range: those pages stay, the one that it was at is read again."""
    mill.environ["NIGHTMILL_EMBEDDER"] = "none"
    mill.run("users", "add", "ann", f"folder:{scan.parent}")
    with killed_at_the_end(mill.start("init", "--json")) as run:
        wait_until(lambda: 20 < recognised(mill) < PAGES - 20, "some pages")
        worker = wait_until(lambda: mill.busy_worker("ocr"), "a worker that recognises a page")
        worker.kill()
        said, _ = run.communicate(timeout=200)
        assert run.returncode == 0
    work = json.loads(said)["work"]
    assert (work["ocr_pages"], work["attempts_failed"] <= 1) == (PAGES, True)
    passages = mill.json("search", "ann", "quarry timber", "--mode", "keyword")["hits"]
    assert passages[0]["page"] in (59, 159)  # the sixth of the words and the ninth


def test_a_killed_run_in_the_middle_of_a_scan_goes_on_at_the_first_page_not_done(mill: Mill, scan: Path) -> None:
    """kill -9 of the coordinator: what the ledger calls read is not read again by the next run."""
    mill.environ["NIGHTMILL_EMBEDDER"] = "none"
    mill.run("users", "add", "ann", f"folder:{scan.parent}")
    with killed_at_the_end(mill.start("init")) as run:
        wait_until(lambda: 20 < recognised(mill) < PAGES - 20, "some pages")
        run.kill()
        run.wait()
    wait_until(lambda: not mill.workers(), "the end of all workers")
    before = recognised(mill)
    done = mill.json("init")
    assert done["work"]["ocr_pages"] <= PAGES - before
    assert mill.repeated_units() == []
    assert mill.json("status", "ann")["indexed"] == 1
    assert mill.json("search", "ann", "window window", "--mode", "keyword")["hits"][0]["page"] in (100, 200)


def test_extract_reads_a_long_scan_as_a_run_does(mill: Mill, scan: Path) -> None:
    """All pages in their order, each with how it was read; nothing of it stays behind."""
    short = long_scan(scan.parent / "short.pdf", 30)
    table = mill.json("extract", str(short))
    assert (table["type"], table["title"], table["notes"]) == ("application/pdf", "short", [])
    assert [(page["number"], page["method"]) for page in table["pages"]] == [(n, "ocr") for n in range(1, 31)]
    assert [page["text"].split() for page in table["pages"]] == [
        [WORDS[number // 10 % 10], WORDS[number % 10]] for number in range(30)
    ]
    assert all(0 <= page["confidence"] <= 100 for page in table["pages"])
    assert sorted(path.name for path in mill.data_dir.iterdir()) == ["run", "spool"]
    assert list((mill.data_dir / "spool").iterdir()) == []
    assert os.stat(short).st_nlink == 1


def test_extract_finds_a_file_of_any_name(mill: Mill, tmp_path: Path) -> None:
    """Signs that mean something in addresses, hidden files, line breaks, and bytes that are no UTF-8."""
    for name in (b"a%20b?c#d.txt", b".hidden", b"new\nline.txt", b"caf\xe9.txt"):
        path = os.path.join(os.fsencode(tmp_path), name)
        with open(path, "w") as file:
            file.write("Six dunlins.")
        assert mill.json("extract", os.fsdecode(path))["text"] == "Six dunlins."


@pytest.mark.parametrize("folder", ["with space", "Mühle", "100%", "a?since=2020-01-01", "b#c"])
def test_extract_works_wherever_the_data_lies(mill: Mill, tmp_path: Path, folder: str) -> None:
    """Whatever stands in the path of the data directory."""
    note = tmp_path / "note.txt"
    note.write_text("Six dunlins.")
    own = Mill(tmp_path, NIGHTMILL_DATA_DIR=str(tmp_path / folder / "var"))
    own.data_dir = tmp_path / folder / "var"
    try:
        assert own.json("extract", str(note))["text"] == "Six dunlins."
    finally:
        own.stop_scheduler()


def test_extract_leaves_the_file_as_it_is(mill: Mill, tmp_path: Path) -> None:
    """A run that comes after takes it for what it was: nothing is read or published again."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "note.txt").write_text("Six dunlins.")
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init")
    before = (home / "note.txt").stat()
    mill.run("extract", str(home / "note.txt"))
    assert (home / "note.txt").stat().st_ctime_ns == before.st_ctime_ns
    work = mill.json("init")["work"]
    assert (work["extracted"], work["published"]) == (0, 0)
    refused = mill.run("extract", str(home / "note.txt"), code=3, NIGHTMILL_DISK_RESERVE="1000000GB")
    assert "disk_full" in refused.stdout


def test_extract_says_what_it_sees_to_people_and_why_it_sees_nothing(mill: Mill, tmp_path: Path) -> None:
    """Type, attachments and text; a reason with its way out and code 3; OCR that is off is said."""
    letter = tmp_path / "letter.eml"
    letter.write_bytes(files.mail("Terns", "Two terns were seen.", ("list.csv", b"bird,count\ntern,2\n", "text/csv")))
    said = mill.run("extract", str(letter)).stdout
    assert "type: message/rfc822\ntitle: Terns\n" in said
    assert "attachment: list.csv (text/csv, 18 bytes)" in said
    assert "Two terns were seen." in said
    broken = tmp_path / "broken.pdf"
    broken.write_bytes(b"%PDF-1.7 nothing")
    assert "broken.pdf: damaged:" in mill.run("extract", str(broken), code=3).stdout
    refused = json.loads(mill.run("extract", str(broken), "--json", code=3).stdout)
    assert (refused["reason"], refused["schema_version"]) == ("damaged", 1)
    scan = long_scan(tmp_path / "scan.pdf", 2)
    table = json.loads(mill.run("extract", str(scan), "--json", NIGHTMILL_OCR="off").stdout)
    assert [page["method"] for page in table["pages"]] == ["none", "none"]
    assert any("OCR is off" in note for note in table["notes"])
