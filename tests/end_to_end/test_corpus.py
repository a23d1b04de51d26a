"""The main job over a folder of real files of many kinds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mill import Mill

#: The kinds that are read, by the ending of the names in this folder; all others are skipped as unsupported.
READ = {
    ".pdf",
    ".docx",
    ".png",
    ".jpg",
    ".jpeg",
    ".tif",
    ".tiff",
    ".txt",
    ".md",
    ".html",
    ".htm",
    ".csv",
    ".eml",
    ".ics",
}


@pytest.mark.corpus
def test_every_real_file_ends_in_a_definite_state(mill: Mill, corpus: Path) -> None:
    """Found = indexed + skipped + failed and agrees with the folder; every valid file of a kind that is read is
    indexed; other kinds are skipped with that reason; a second run does nothing."""
    folder = corpus / "mixed"
    files = [Path(place) / name for place, _, names in os.walk(folder) for name in names]
    mill.run("users", "add", "ann", f"folder:{folder}")
    report = mill.json("init", code=3)
    counts = report["counts"]
    assert counts["found"] == len(files) == counts["indexed"] + counts["skipped"] + counts["failed"]
    assert (counts["pending"], counts["failed"]) == (0, 0)
    assert counts["indexed"] >= 0.65 * len(files)
    reasons = {path: reason for path, reason in mill.reasons("ann").items() if path in {f.name for f in files}}
    assert set(reasons.values()) == {"unsupported_type"}
    assert [path for path in reasons if Path(path).suffix.lower() in READ] == []
    second = mill.json("init", code=3)
    assert set(second["work"].values()) == {0}
    assert second["counts"] == counts
