"""`import engine` is what every worker process does first: it loads nothing, and still offers the public names."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import engine


def modules_after(program: str) -> set[str]:
    run = subprocess.run(
        [sys.executable, "-P", "-c", f"{program}\nimport sys, json; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    return set(json.loads(run.stdout))


def test_importing_the_package_loads_no_other_module_of_it() -> None:
    """Nor anything else that a bare interpreter has not loaded, but `typing`."""
    loaded = modules_after("import engine") - modules_after("import __future__, typing")
    assert loaded == {"engine"}


def test_the_api_loads_no_heavy_package() -> None:
    """A program that wants tokens pays for no index, model, OCR or ledger."""
    loaded = modules_after("from engine import get_thread_pool_manager, process_parallel, ItemFailure")
    assert not loaded & {"numpy", "faiss", "pymupdf", "onnxruntime", "tesserocr", "PIL", "sqlalchemy", "tqdm"}
    assert "engine.ledger" not in loaded


@pytest.mark.parametrize("name", engine.__all__)
def test_every_public_name_is_there_and_listed(name: str) -> None:
    """Each can be had, is found by dir(), and says what it is for."""
    value = getattr(engine, name)
    assert name in dir(engine)
    assert value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As for every module."""
    with pytest.raises(AttributeError, match="module 'engine' has no attribute 'acquire'"):
        _ = engine.acquire  # type: ignore[attr-defined]
