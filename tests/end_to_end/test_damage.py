"""Damage to one user's index is that user's trouble alone."""

from __future__ import annotations

from pathlib import Path

from tests.mill import Mill


def test_a_damaged_index_stops_nobody_else(mill: Mill, tmp_path: Path) -> None:
    """The user with the damaged index is named with the way out, exit code 3; the others are brought up to date."""
    for user in ("ann", "ben", "cleo"):
        (tmp_path / user).mkdir()
        (tmp_path / user / "note.txt").write_text(f"The first note of {user}.")
        mill.run("users", "add", user, f"folder:{tmp_path / user}")
    mill.run("init")
    database = mill.data_dir / "indexes" / "ben" / "index.db"
    database.write_bytes(b"no database at all " * 1000)
    for user in ("ann", "ben", "cleo"):
        (tmp_path / user / "more.txt").write_text(f"About turnstones, says {user}.")
    report = mill.json("init", code=3)
    assert [trouble for trouble in report["troubles"] if trouble.startswith("ben: ")] == report["troubles"] != []
    assert mill.hits("ann", "turnstones", "--mode", "keyword") == ["more.txt"]
    assert mill.hits("cleo", "turnstones", "--mode", "keyword") == ["more.txt"]
    mill.run("search", "ben", "turnstones", code=4)
    database.unlink()
    mill.run("init")
    assert mill.hits("ben", "turnstones", "--mode", "keyword") == ["more.txt"]
