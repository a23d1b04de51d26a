"""What a new user does first: register, index, ask, and do it again."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import docx
import pytest

from tests import files
from tests.mill import Mill, fingerprint_of


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with one file of each kind that is read, a mailbox and a calendar."""
    home = tmp_path / "home"
    (home / "deep" / "er").mkdir(parents=True)
    files.text_pdf(home / "contract.pdf", "The lighthouse is leased for nine years.", "Termination needs a letter.")
    files.scanned_pdf(home / "deep" / "scan.pdf", "Receipt for copper wire\nfrom the harbour shop")
    files.picture("The ferry leaves\nat half past seven").save(home / "deep" / "er" / "ferry.png")
    document = docx.Document()
    document.add_paragraph("Bread list")
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip(table._cells, ("bread", "price", "walnut loaf", "four crowns"), strict=True):
        cell.text = text
    document.save(str(home / "prices.docx"))
    (home / "notes.txt").write_text("Remember the umbrella stand.", encoding="utf-8")
    (home / "page.html").write_text("<html><title>Gulls</title><body><p>Gulls nest in May.</p></body></html>")
    (home / "stock.csv").write_text("item,count\nrope,12\nanchor,3\n")
    return home


def test_everything_is_found_and_nothing_is_done_twice(mill: Mill, home: Path, tmp_path: Path) -> None:
    """Each kind of file is indexed and found; a second run reads nothing, embeds nothing and writes nothing."""
    mailbox = files.mbox(
        tmp_path / "post.mbox",
        files.mail("Boiler", "The boiler was serviced.", ("bill.txt", b"Boiler bill: 120 crowns", "text/plain")),
    )
    calendar = tmp_path / "days.ics"
    calendar.write_text(files.CALENDAR)
    mill.run("users", "add", "ann", f"folder:{home}", f"mbox:{mailbox}", f"ics:{calendar}")
    first = mill.json("init")
    assert first["counts"]["found"] == first["counts"]["indexed"] == 9
    assert first["counts"]["attachments_indexed"] == 1
    assert first["work"]["ocr_pages"] == 2
    expected = {
        "lease of the lighthouse": "contract.pdf",
        "copper wire receipt": "deep/scan.pdf",
        "when does the ferry leave": "deep/er/ferry.png",
        "walnut loaf price": "prices.docx",
        "umbrella stand": "notes.txt",
        "gulls nest": "page.html",
        "how many anchors": "stock.csv",
        "boiler serviced": "post.mbox#1",
        "boiler bill": "post.mbox#1/bill.txt",
        "standup lighthouse team": "days.ics#1",
    }
    assert {words: mill.hits("ann", words, "-k", "1")[0] for words in expected} == expected
    before = fingerprint_of(mill.data_dir / "indexes")
    second = mill.json("init")
    assert second["counts"] == first["counts"]
    assert set(second["work"].values()) == {0}
    assert fingerprint_of(mill.data_dir / "indexes") == before


def test_hits_say_where_they_are(mill: Mill, home: Path) -> None:
    """A hit has title, path, kind, page, passage and score."""
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init")
    hit = mill.json("search", "ann", "termination needs a letter")["hits"][0]
    assert (hit["path"], hit["kind"], hit["page"]) == ("contract.pdf", "file", 2)
    assert "Termination" in hit["passage"]
    assert hit["title"]
    assert hit["score"] > 0
    assert mill.json("search", "ann", "gulls", "--kind", "mail")["hits"] == []


@pytest.mark.parametrize("embedder", ["builtin", "fast", "none"])
def test_each_embedder_answers(mill: Mill, home: Path, embedder: str) -> None:
    """With each model, and with none, a question finds its file; vector search answers where there are vectors."""
    mill.environ["NIGHTMILL_EMBEDDER"] = embedder
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init")
    assert mill.hits("ann", "umbrella stand")[0] == "notes.txt"
    vectors = mill.hits("ann", "umbrella stand", "--mode", "vector")
    assert vectors[:1] == ([] if embedder == "none" else ["notes.txt"])


def test_a_change_of_model_switches_the_whole_index(mill: Mill, home: Path) -> None:
    """Another model embeds everything anew, extracts nothing, and answers from then on."""
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init", NIGHTMILL_EMBEDDER="none")
    report = mill.json("init")
    assert report["work"]["extracted"] == report["work"]["ocr_pages"] == 0
    assert report["work"]["embedded"] > 0
    assert mill.hits("ann", "gulls nesting", "--mode", "vector")[0] == "page.html"
    assert set(mill.json("init")["work"].values()) == {0}


def test_changes_are_followed(mill: Mill, home: Path) -> None:
    """A changed file is read again, a new one is added, a removed one is no longer found; the others are left alone."""
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init")
    (home / "notes.txt").write_text("Remember the telescope.", encoding="utf-8")
    (home / "new.txt").write_text("Barometer reading: fair.", encoding="utf-8")
    (home / "page.html").unlink()
    report = mill.json("init")
    assert (report["work"]["extracted"], report["work"]["removed"]) == (2, 1)
    assert mill.hits("ann", "telescope", "--mode", "keyword") == ["notes.txt"]
    assert mill.hits("ann", "umbrella", "--mode", "keyword") == []
    assert mill.hits("ann", "barometer", "--mode", "keyword") == ["new.txt"]
    assert mill.hits("ann", "gulls", "--mode", "keyword") == []


def test_a_moved_scan_is_not_read_again(mill: Mill, home: Path) -> None:
    """The same bytes under another name cost no OCR."""
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init")
    (home / "deep" / "scan.pdf").rename(home / "moved.pdf")
    report = mill.json("init")
    assert report["work"]["ocr_pages"] == report["work"]["extracted"] == 0
    assert mill.hits("ann", "copper wire")[0] == "moved.pdf"


def test_a_rebuild_reads_everything_again(mill: Mill, home: Path) -> None:
    """`reindex --full` extracts and recognises all items of the user anew."""
    mill.run("users", "add", "ann", f"folder:{home}")
    first = mill.json("init")
    full = mill.json("reindex", "ann", "--full")
    assert (full["work"]["extracted"], full["work"]["ocr_pages"]) == (first["work"]["extracted"], 2)
    assert full["counts"] == first["counts"]


def test_a_lost_index_is_noticed_and_made_again(mill: Mill, home: Path) -> None:
    """Who deletes or loses the folder of an index gets it back with the next run, without being asked."""
    mill.run("users", "add", "ann", f"folder:{home}")
    first = mill.json("init")
    shutil.rmtree(mill.data_dir / "indexes")
    again = mill.json("init")
    assert again["counts"] == first["counts"]
    assert mill.hits("ann", "umbrella stand")[0] == "notes.txt"


def test_users_see_only_their_own(mill: Mill, home: Path, tmp_path: Path) -> None:
    """Nothing of one user is found in another's index."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "own.txt").write_text("Only a teapot.")
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("users", "add", "ben", f"folder:{other}")
    mill.run("init")
    assert mill.hits("ben", "lighthouse lease umbrella gulls") in ([], ["own.txt"])
    assert mill.hits("ann", "teapot", "--mode", "keyword") == []


def test_removing_and_erasing(mill: Mill, home: Path) -> None:
    """A removed user cannot be asked any more; erasing leaves no byte of the index."""
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("users", "add", "ben", f"folder:{home}")
    mill.run("init")
    mill.run("users", "remove", "ann")
    assert "no user 'ann'" in mill.run("search", "ann", "gulls", code=2).stderr
    erased = mill.json("users", "erase", "ben")
    assert erased["erased_files"] > 0
    assert list((mill.data_dir / "indexes").iterdir()) == []
    data = b"".join(path.read_bytes() for path in mill.data_dir.rglob("*") if path.is_file())
    assert b"umbrella" not in data
    assert b"contract.pdf" not in data
    assert (home / "contract.pdf").exists()


def test_extract_shows_what_is_seen(mill: Mill, home: Path) -> None:
    """`extract` reads a scan as a run would: type, pages, how each was read."""
    table = mill.json("extract", str(home / "deep" / "scan.pdf"))
    assert table["type"] == "application/pdf"
    assert [(page["number"], page["method"]) for page in table["pages"]] == [(1, "ocr")]
    assert "copper wire" in table["text"]
    assert table["pages"][0]["confidence"] > 50
    assert mill.json("extract", str(home / "stock.csv"))["type"] == "text/csv"


@pytest.mark.tesseract
def test_the_other_ocr_backend_reads_too(mill: Mill, tmp_path: Path) -> None:
    """With the tesseract program in place of the wheel, scans and pictures are read as well."""
    if shutil.which("tesseract") is None:
        pytest.skip("the tesseract program is not installed (scripts/test installs it through apt when it may)")
    home = tmp_path / "scans"
    home.mkdir()
    files.scanned_pdf(home / "scan.pdf", "Receipt for copper wire", "and for two anchors")
    files.picture("The ferry leaves").save(home / "ferry.png")
    mill.environ["NIGHTMILL_OCR_BACKEND"] = "pytesseract"
    mill.run("users", "add", "ann", f"folder:{home}")
    assert mill.json("init")["work"]["ocr_pages"] == 3
    assert mill.hits("ann", "copper wire", "--mode", "keyword") == ["scan.pdf"]
    assert mill.hits("ann", "ferry leaves", "--mode", "keyword") == ["ferry.png"]


def test_a_new_stage_version_redoes_that_stage_alone(mill: Mill, home: Path) -> None:
    """What was cut by an older release is cut again, and nothing is extracted; what was read by one is read again."""
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init")
    for column, extracted in (("chunking", 0), ("extract", 7)):
        with sqlite3.connect(mill.data_dir / "indexes" / "ann" / "index.db") as index:
            index.execute(f"UPDATE items SET {column} = 'older'")
            index.execute("UPDATE documents SET extract = 'older'" if extracted else "SELECT 1")
        report = mill.json("init")
        assert (report["work"]["extracted"], report["work"]["published"]) == (extracted, 7)
        assert set(mill.json("init")["work"].values()) == {0}


def test_status_and_completion(mill: Mill, home: Path) -> None:
    """`status` counts, `completion` writes a script that a shell accepts, `users list` names the sources."""
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init")
    table = mill.json("status", "ann")
    assert (table["found"], table["indexed"], table["pending"]) == (7, 7, 0)
    assert mill.json("status")["users"] == [
        {"user": "ann", "found": 7, "indexed": 7, "skipped": 0, "failed": 0, "pending": 0}
    ]
    assert mill.json("users", "list")["users"][0]["sources"] == [f"folder:{home}"]
    assert "nightmill" in mill.run("completion", "bash").stdout
    assert json.loads(mill.run("settings", "--json").stdout)["settings"]
    assert mill.json("doctor", code=0)["checks"]
