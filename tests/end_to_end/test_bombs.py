"""Files that ask for more than they may have, in a whole run under a memory limit, beside a file that is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import bombs
from tests.mill import Mill, wait_until

#: One of each kind, of those that are made and read within a moment; `scripts/bombs` tries all.
QUICK = (
    "arrays_in_arrays_1m.pdf",
    "black_1_bit_30000.png",
    "blanks_1m.docx",
    "blanks_1m.eml",
    "blanks_1m.ics",
    "blanks_in_pre_1m.html",
    "colour_profile_500mb.png",
    "directory_65537.xlsx",
    "encoded_words_3mb.eml",
    "entities.docx",
    "entities.xml",
    "entities_that_never_end.xml",
    "header_65535.gif",
    "mails_in_mails_3000.eml",
    "multiparts_in_multiparts_300.eml",
    "one_bad_byte_in_64k.txt",
    "picture_30000x30000_claimed_rgb.pdf",
    "parameters_of_a_part_2m.eml",
    "predictor_wide.pdf",
    "quotes_2000_in_a_row.csv",
    "saved_states_2m.pdf",
    "tables_in_tables.docx",
    "tree_of_10_to_the_12_pages.pdf",
)
LIMIT_BYTES = 1 << 30


@pytest.fixture
def mill(tmp_path: Path) -> Iterator[Mill]:
    """Without vectors: what is tested here happens before."""
    made = Mill(tmp_path, NIGHTMILL_EMBEDDER="none", NIGHTMILL_MEMORY_LIMIT=str(LIMIT_BYTES))
    yield made
    made.stop_scheduler()
    wait_until(lambda: not made.processes(), "the end of every process of this data directory", seconds=20.0)


def test_every_bomb_ends_in_a_state_that_it_may_end_in(mill: Mill, tmp_path: Path) -> None:
    """Indexed as far as its bounds go, or failed for one of the reasons that fit; nothing took more than the limit, and
    the file beside them is found."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "good.txt").write_text("A good file about herons.")
    for name in QUICK:
        bombs.write(name, home)
    mill.run("users", "add", "ann", f"folder:{home}")
    counts = mill.json("init", code=3)["counts"]
    assert counts["found"] == len(QUICK) + 1 == counts["indexed"] + counts["skipped"] + counts["failed"]
    reasons = mill.reasons("ann")
    wrong = {name: found for name in QUICK if (found := reasons.get(name, bombs.READ)) not in bombs.BOMBS[name][1]}
    assert wrong == {}
    assert reasons["directory_65537.xlsx"] == reasons["black_1_bit_30000.png"] == "bomb"
    assert mill.hits("ann", "herons", "--mode", "keyword") == ["good.txt"]
    [(peak,)] = mill.ledger("SELECT max(peak_bytes) FROM attempts")
    assert peak <= LIMIT_BYTES
