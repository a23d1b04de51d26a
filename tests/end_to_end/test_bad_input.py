"""What bad input gets: a reason for each, the rest indexed, and an exit code that says so."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from tests import files
from tests.mill import Mill


def test_each_bad_file_has_its_reason_and_the_rest_is_indexed(mill: Mill, tmp_path: Path) -> None:
    """Encrypted, empty, truncated, unknown, linked, special: listed with a reason; exit code 3; the sum is right."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "good.txt").write_text("A good file about herons.")
    files.encrypted_pdf(home / "locked.pdf")
    (home / "empty.txt").touch()
    whole = files.text_pdf(home / "cut.pdf", "some text " * 200).read_bytes()
    (home / "cut.pdf").write_bytes(whole[: len(whole) // 4])
    (home / "noise.bin").write_bytes(bytes(range(256)) * 40)
    (home / "song.mp3").write_bytes(b"ID3\x04\x00\x00\x00\x00\x00\x00" + b"\xff\xfb\x90\x00" * 200)
    (home / "link.txt").symlink_to("/etc/passwd")
    os.mkfifo(home / "pipe")
    (home / os.fsdecode(b"caf\xe9.txt")).write_text("An undecodable name about storks.")
    mill.run("users", "add", "ann", f"folder:{home}")
    report = mill.json("init", code=3)
    counts = report["counts"]
    assert counts["found"] == len(os.listdir(home)) == counts["indexed"] + counts["skipped"] + counts["failed"]
    reasons = mill.reasons("ann")
    assert reasons == {
        "locked.pdf": "encrypted",
        "empty.txt": "empty",
        "cut.pdf": "damaged",
        "noise.bin": "unknown_type",
        "song.mp3": "unsupported_type",
        "link.txt": "symbolic_link",
        "pipe": "not_a_file",
    }
    assert mill.hits("ann", "herons", "--mode", "keyword") == ["good.txt"]
    assert mill.hits("ann", "storks", "--mode", "keyword") == ["caf\ufffd.txt"]
    explained = mill.json("failures", "explain", "locked.pdf")["items"][0]
    assert explained["reason"] == "encrypted"
    assert explained["way_out"]
    assert explained["tried"][0]["failure"]["reason"] == "encrypted"


def test_a_missing_folder_is_a_failure_of_its_source_alone(mill: Mill, tmp_path: Path) -> None:
    """The source is named with its reason, what was indexed from it stays, other sources go on, exit code 3."""
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    (home / "a.txt").write_text("About herons.")
    (away / "b.txt").write_text("About storks.")
    mill.run("users", "add", "ann", f"folder:{home}", f"folder:{away}")
    mill.run("init")
    away.rename(tmp_path / "gone")
    (home / "a.txt").write_text("About cranes.")
    report = mill.json("init", code=3)
    assert any(str(away) in trouble for trouble in report["troubles"])
    failed = mill.json("failures", "list")
    assert [source["reason"] for source in failed["sources"]] == ["source_missing"]
    assert mill.hits("ann", "storks", "--mode", "keyword") == ["b.txt"]
    assert mill.hits("ann", "cranes", "--mode", "keyword") == ["a.txt"]
    (tmp_path / "gone").rename(away)
    mill.run("init")
    assert mill.json("failures", "list") == {"schema_version": 1, "sources": [], "failures": []}


def test_failed_items_can_be_mended_and_retried(mill: Mill, tmp_path: Path) -> None:
    """`failures retry` lets the next run try again; a file that was mended is indexed by itself."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "empty.txt").touch()
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init", code=3)
    assert mill.json("failures", "retry", "--reason", "empty") == {"schema_version": 1, "requeued": 1}
    assert mill.json("init", code=3)["counts"]["failed"] == 1
    (home / "empty.txt").write_text("No longer empty: egrets.")
    assert mill.json("init")["counts"] | {} == mill.json("init")["counts"]
    assert mill.hits("ann", "egrets", "--mode", "keyword") == ["empty.txt"]


def test_all_wrong_settings_are_told_at_once(mill: Mill) -> None:
    """Exit code 2, and a line for each with key, value, origin and range."""
    (mill.place / ".env").write_text("NIGHTMILL_STALL_SECONDS=never\n")
    said = mill.run("init", code=2, MAX_TOTAL_WORKERS="0", NIGHTMILL_OCR="perhaps").stderr
    assert "MAX_TOTAL_WORKERS = 0 (from the environment); must be 1 to 1000" in said
    assert "NIGHTMILL_OCR = perhaps (from the environment)" in said
    assert "NIGHTMILL_STALL_SECONDS = never (from .env); must be 5 to 3600" in said


def test_wrong_words_name_the_way_out(mill: Mill, tmp_path: Path) -> None:
    """Unknown users, kinds of source and files end with exit code 2 and say what to do."""
    assert "users list" in mill.run("init", "nobody", code=2).stderr
    assert "folder:PATH" in mill.run("users", "add", "ann", "ftp://x", code=2).stderr
    assert "not a file" in mill.run("extract", str(tmp_path / "none.pdf"), code=2).stderr
    assert "no user" in mill.run("search", "ann", "words", code=2).stderr
    mill.run("failures", "explain", "nothing", code=2)


def test_an_import_with_mistakes_imports_nothing(mill: Mill, tmp_path: Path) -> None:
    """Every wrong line is told with its number, and no user is registered; a right file registers all."""
    table = tmp_path / "users.csv"
    table.write_text(f"name,source\nann,folder:{tmp_path}\nben,gopher:/x\n,folder:/y\n")
    said = mill.run("users", "import", str(table), code=2).stderr
    assert "line 3" in said
    assert "line 4" in said
    assert mill.json("users", "list")["users"] == []
    table.write_text(f"name,source\nann,folder:{tmp_path}\nann,ics:{tmp_path}\nben,folder:{tmp_path},2.5\n")
    mill.run("users", "import", str(table))
    assert [entry["user"] for entry in mill.json("users", "list")["users"]] == ["ann", "ben"]


def test_a_newer_data_directory_is_refused(mill: Mill, tmp_path: Path) -> None:
    """Exit code 4, and it is said that a newer release wrote it."""
    mill.run("users", "add", "ann", f"folder:{tmp_path}")
    with sqlite3.connect(mill.data_dir / "ledger.db") as ledger:
        ledger.execute("PRAGMA user_version = 9999")
    assert "newer" in mill.run("status", code=4).stderr


def test_a_full_disk_stops_the_run_before_it_begins(mill: Mill, tmp_path: Path) -> None:
    """Below the reserve nothing is begun: exit code 4, with the numbers."""
    mill.run("users", "add", "ann", f"folder:{tmp_path}")
    said = mill.run("init", code=4, NIGHTMILL_DISK_RESERVE="900TB").stderr
    assert "NIGHTMILL_DISK_RESERVE" in said


def test_the_brake_holds_removals_until_a_second_run(mill: Mill, tmp_path: Path) -> None:
    """When much of a source vanishes at once it stays searchable until another run finds the same."""
    home = tmp_path / "home"
    home.mkdir()
    for number in range(40):
        (home / f"{number}.txt").write_text(f"The bittern number {number}.")
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init")
    for number in range(20):
        (home / f"{number}.txt").unlink()
    assert mill.json("init")["held_removals"] == 20
    assert mill.json("status", "ann")["sources"][0]["held_removals"] == 20
    assert "7.txt" in mill.hits("ann", "bittern number 7", "-k", "40", "--mode", "keyword")
    second = mill.json("init")
    assert (second["held_removals"], second["work"]["removed"]) == (0, 20)
    assert mill.json("status", "ann")["found"] == 20
    for number in range(20, 35):
        (home / f"{number}.txt").unlink()
    assert mill.json("init", "--accept-removals")["work"]["removed"] == 15


def test_debug_mode_looks_at_few_and_removes_nothing(mill: Mill, tmp_path: Path) -> None:
    """Only the latest 50 files are read, and what is gone stays."""
    home = tmp_path / "home"
    home.mkdir()
    for number in range(60):
        path = home / f"{number}.txt"
        path.write_text(f"The plover number {number}.")
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))
    mill.run("users", "add", "ann", f"folder:{home}")
    report = mill.json("init", code=3, DEBUG_MODE="1")
    assert (report["counts"]["indexed"], report["counts"]["pending"]) == (50, 10)
    assert "9.txt" not in mill.hits("ann", "plover number 9", "-k", "60", "--mode", "keyword")
    (home / "59.txt").unlink()
    assert mill.json("init", DEBUG_MODE="1")["work"]["removed"] == 0
    assert "59.txt" in mill.hits("ann", "plover number 59", "-k", "60", "--mode", "keyword")


def test_its_own_data_is_never_indexed(mill: Mill) -> None:
    """A source that holds the data directory lists everything but that, and a second run has nothing to do."""
    (mill.place / "note.txt").write_text("About grebes.")
    mill.run("users", "add", "ann", f"folder:{mill.place}")
    assert mill.json("init")["counts"]["found"] == 1
    assert set(mill.json("init")["work"].values()) == {0}
