"""`scripts/bench extract` in its smallest size, over a corpus of a few files: it counts rightly. Never how fast."""

from __future__ import annotations

import importlib
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import docx
import pytest

from tests.conftest import REPOSITORY
from tests.files import mail, picture, text_pdf

BENCH = REPOSITORY / "scripts" / "benches" / "extract.py"
WORDS = "The lease of the mill ends in spring and the miller wants it renewed for ten years"
#: What each section must report without the others, whatever the numbers are.
NAMES = {
    "ocr": {"pages", "wall_ratio", "pages_per_second_nightmill", "cpu_per_page_nightmill", "cer_all_nightmill"},
    "mixed": {"files", "files_per_second_all_nightmill", "cpu_per_file_all_nightmill", "worker_share"},
    "types": {"cpu_pdf_nightmill", "cpu_docx_nightmill", "cpu_text_plain_nightmill"},
    "pages": {"pages", "pages_per_second_nightmill", "cpu_per_page_nightmill"},
    "words": {"docx_words", "docx_missing", "docx_more"},
    "memory": {"ocr_worker", "text_worker"},
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two page images with their truth, one of which is wrong in every letter, and four files of different kinds."""
    place = tmp_path_factory.mktemp("corpus")
    ocr, mixed = place / "ocr", place / "mixed"
    ocr.mkdir()
    mixed.mkdir()
    for name, truth in (("clean300_a", "Lease of the mill"), ("other_b", "#" * len("Leaseofthemill"))):
        picture("Lease of the mill").save(ocr / f"{name}.png", dpi=(300, 300))
        (ocr / f"{name}.png.gt.txt").write_text(truth)
    (ocr / "groups.tsv").write_text("clean300_a.png\tclean300\t300\t1240x500\nother_b.png\tother\t0\t1240x500\n")
    text_pdf(mixed / "lease.pdf", "\n".join([WORDS] * 8), "A page of few words")
    (mixed / "note.txt").write_text(WORDS)
    (mixed / "mail.eml").write_bytes(mail("Lease", WORDS))
    document = docx.Document()
    document.add_paragraph(WORDS)
    document.sections[0].header.paragraphs[0].text = "Letterhead"
    document.save(str(mixed / "letter.docx"))
    return place


@pytest.fixture(scope="module")
def measured(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Every section once, without the others: the JSON, and a folder that is like docs."""
    docs = tmp_path_factory.mktemp("docs")
    marks = "\n\n".join(f"<!-- figures of {name} -->\nold\n<!-- end of {name} -->" for name in NAMES)
    (docs / "extraction.md").write_text(f"# Extraction\n\nWords that stay.\n\n{marks}\n")
    words = ["--quick", "--every", "1", "--corpus", str(corpus), "--peers", "none", "--place", str(docs)]
    command = [sys.executable, str(BENCH), *words, "--json", str(docs / "found.json"), "--write", str(docs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=270, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "targets missed: " in done.stdout
    return json.loads((docs / "found.json").read_text()), docs


@pytest.fixture
def measures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The part of the bench that is pure."""
    monkeypatch.syspath_prepend(str(BENCH.parent))
    return importlib.import_module("extraction.measures")


def test_every_section_reports_and_nothing_was_lost(measured: tuple[dict[str, Any], Path]) -> None:
    """Each figure is a number with its unit and target; what was missed is named once more."""
    table, _ = measured
    assert (table["schema_version"], table["quick"], table["peers"], table["broken"]) == (1, True, False, [])
    assert {name: names - _values(table, name).keys() for name, names in NAMES.items()} == {n: set() for n in NAMES}
    figures = {f"{name}.{one['name']}": one for name, part in table["parts"].items() for one in part["figures"]}
    assert all(one["value"] >= 0 for one in figures.values())
    assert table["missed"] == [name for name, one in figures.items() if one["missed"]]


def test_pages_files_and_words_are_counted_as_they_are(measured: tuple[dict[str, Any], Path]) -> None:
    """Four pages of scans, twice four files, two books of twenty pages; a wrong truth is wrong in every letter."""
    table, _ = measured
    ocr, words = _values(table, "ocr"), _values(table, "words")
    assert ocr["pages"] == 4
    assert ocr["cer_clean300_nightmill"] == 0
    assert ocr["cer_other_nightmill"] >= 100
    assert 0 < ocr["cer_all_nightmill"] < ocr["cer_other_nightmill"]
    assert _values(table, "mixed")["files"] == 8
    assert _values(table, "pages")["pages"] == 40
    assert words["docx_words"] == len(WORDS.split()) + 1
    assert words["docx_missing"] == 0
    assert 10 < _values(table, "memory")["text_worker"] < 1000


def test_tables_and_pictures_are_written_into_the_page(measured: tuple[dict[str, Any], Path]) -> None:
    """Between the marks, as often as one likes; the rest stays. Pictures are XML."""
    docs = measured[1]
    page = (docs / "extraction.md").read_text()
    assert "Words that stay." in page
    assert "old" not in page.split()
    assert page.count("| target |") == len(NAMES)
    assert page.count("<!-- figures of") == page.count("<!-- end of") == len(NAMES)
    pictures = {path.name for path in (docs / "figures").iterdir()}
    assert {"extract-ocr.svg", "extract-errors.svg", "extract-pages.svg", "extract-types.svg"} <= pictures
    for name in pictures:
        assert ElementTree.parse(docs / "figures" / name).getroot().tag.endswith("svg")


def test_nothing_is_left_in_the_place(measured: tuple[dict[str, Any], Path]) -> None:
    """Data directories, copies and PDFs are gone when the bench is done."""
    assert {path.name for path in measured[1].iterdir()} == {"extraction.md", "figures", "found.json"}


def test_the_documentation_has_a_place_for_each_section() -> None:
    """Else `--write docs` would fail after an hour of measuring."""
    page = (REPOSITORY / "docs" / "extraction.md").read_text()
    for name in NAMES:
        assert (page.count(f"<!-- figures of {name} -->"), page.count(f"<!-- end of {name} -->")) == (1, 1)


def test_the_distance_is_the_fewest_edits(measures: ModuleType) -> None:
    """As the table of all prefixes says, for texts of any length, the empty one too."""
    luck = random.Random(1)
    for _ in range(300):
        one, other = ("".join(luck.choices("abcé ", k=luck.randrange(70))) for _ in range(2))
        assert measures.distance(one, other) == _by_table(one, other)


def test_errors_are_folded_as_the_corpus_says(measures: ModuleType) -> None:
    """Quotes, ligatures, white space and line-end hyphens cost nothing; case counts, but not on receipts."""
    truth = "“Well–known ﬁgures” of the in-\nterest"
    assert measures.folded(truth) == '"Well-known figures" of the interest'
    rates = measures.error_rates(
        {"a": "Total", "b": "total", "c": "total"},
        dict.fromkeys("abcd", "TOTAL"),
        {"a": "page", "b": "page", "c": "receipt", "d": "lost"},
    )
    assert rates == {"all": pytest.approx(70.0), "lost": 100.0, "page": pytest.approx(90.0), "receipt": 0.0}


def test_words_count_as_often_as_two_others_find_them(measures: ModuleType) -> None:
    """What one alone finds is no word; broken words are joined; what is found too often costs precision."""
    others = [Counter(words.split()) for words in ("a a a b", "a a c", "a b", "a")]
    assert measures.agreed(others) == Counter({"a": 2, "b": 1})
    assert measures.words_of("Wind-\nmühle, wind\u0002mühle ﬁve") == Counter({"windmühle": 2, "five": 1})
    found = measures.compare(Counter("aaad"), Counter({"a": 2, "b": 1}))
    assert (found.recall, found.precision) == (pytest.approx(2 / 3), 0.5)


def _values(table: dict[str, Any], name: str) -> dict[str, float]:
    return {figure["name"]: figure["value"] for figure in table["parts"][name]["figures"]}


def _by_table(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for index, a in enumerate(one, 1):
        before, row[0] = row[0], index
        for column, b in enumerate(other, 1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (a != b))
    return row[-1]
