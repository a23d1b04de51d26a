"""The limit of text that is kept of one document, through whole runs: texts, and pages that are recognised."""

from __future__ import annotations

import json
from pathlib import Path

from tests import files
from tests.mill import Mill


def test_what_was_cut_is_counted_and_read_anew_when_the_limit_is_another(mill: Mill, tmp_path: Path) -> None:
    """The beginning is found, the end is not; with a higher limit both are, and nothing is partial."""
    mill.environ["NIGHTMILL_EMBEDDER"] = "none"
    home = tmp_path / "home"
    home.mkdir()
    (home / "long.txt").write_text("The dotterel begins.\n" + "Filler of no weight.\n" * 100 + "The whimbrel ends.\n")
    (home / "short.txt").write_text("All about pratincoles.")
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init", NIGHTMILL_MAX_TEXT="1KB")
    assert mill.hits("ann", "dotterel") == ["long.txt"]
    assert mill.hits("ann", "whimbrel") == []
    assert mill.ledger("SELECT sum(partial) FROM items") == [(1,)]
    assert mill.json("init", NIGHTMILL_MAX_TEXT="1KB")["work"]["extracted"] == 0
    mill.run("init")
    assert mill.hits("ann", "whimbrel") == ["long.txt"]
    assert mill.ledger("SELECT sum(partial) FROM items") == [(0,)]


def test_recognised_pages_are_cut_together(mill: Mill, tmp_path: Path) -> None:
    """What OCR adds counts like any text, in a run and for a single file, and both say where it was cut."""
    mill.environ["NIGHTMILL_EMBEDDER"] = "none"
    home = tmp_path / "home"
    home.mkdir()
    pages = ["\n".join([f"The {word} is on this page"] * 30) for word in ("dotterel", "whimbrel", "pratincole")]
    scan = files.scanned_pdf(home / "scan.pdf", *pages)
    mill.run("users", "add", "ann", f"folder:{home}")
    mill.run("init", NIGHTMILL_MAX_TEXT="1KB")
    assert mill.hits("ann", "dotterel") == ["scan.pdf"]
    assert mill.hits("ann", "pratincole") == []
    assert mill.ledger("SELECT sum(partial) FROM items") == [(1,)]
    seen = json.loads(mill.run("extract", str(scan), "--json", NIGHTMILL_MAX_TEXT="1KB").stdout)
    assert sum(len(page["text"].encode()) for page in seen["pages"]) <= 1_000
    assert any("the text was cut at 1 KB on page 2; in all it has" in note for note in seen["notes"])
