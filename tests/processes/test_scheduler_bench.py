"""`scripts/bench scheduler` in its small size: it measures what it says, and no promise is broken. Never how fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.conftest import REPOSITORY

BENCH = REPOSITORY / "scripts" / "benches" / "scheduler.py"
#: What each part must report, whatever the numbers are.
NAMES = {
    "simulation": {"cores2_grant_p99_us", "cores16_grant_p99_us", "cores2_lag_of_bound", "cores16_jain_median"},
    "calls": {"acquire_release_p50_us", "leases_per_second", "calls_per_second_8", "idle_mb", "loaded_mb"},
    "express": {"extra_core_calls", "class_reserve_calls", "total1_after_end_max_ms", "total2_after_end_max_ms"},
    "noop": {"noop_engine_ms", "noop_scheduler_ms", "text_engine_ms", "text_workers_ms"},
    "share": {"quiet_ratio", "third_ratio", "interactive_ratio", "apart_ratio"},
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


def _bench(*words: str, code: int = 0) -> str:
    command = [sys.executable, str(BENCH), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=270, stdin=subprocess.DEVNULL)
    assert done.returncode == code, f"{words}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Every part once, as JSON, and the folder of its pictures."""
    place = tmp_path_factory.mktemp("bench")
    said = _bench("--quick", "--json", str(place / "found.json"), "--plots", str(place / "plots"))
    assert "target" in said
    return json.loads((place / "found.json").read_text()), place / "plots"


def test_every_part_reports_and_no_promise_is_broken(measured: tuple[dict[str, Any], Path]) -> None:
    """Each figure is a number with its unit and target; no limit was exceeded, and nothing was lost."""
    table, _ = measured
    assert table["schema_version"] == 1
    assert table["quick"] is True
    assert table["broken"] == []
    assert {name: names - {f["name"] for f in table["parts"][name]["figures"]} for name, names in NAMES.items()} == {
        name: set() for name in NAMES
    }
    for part in table["parts"].values():
        for figure in part["figures"]:
            assert figure["value"] >= 0
            assert {"unit", "words", "at_most", "at_least", "missed"} <= figure.keys()
    missed = {
        f"{name}.{figure['name']}"
        for name, part in table["parts"].items()
        for figure in part["figures"]
        if figure["missed"]
    }
    assert set(table["missed"]) == missed


def test_what_does_not_depend_on_the_machine_is_as_promised(measured: tuple[dict[str, Any], Path]) -> None:
    """In simulated time: limits looked at thousands of times, lag within its bound, shares equal, cores never idle."""
    table, _ = measured
    simulation = table["parts"]["simulation"]
    found = {figure["name"]: figure["value"] for figure in simulation["figures"]}
    assert simulation["checked"] > 50_000
    for cores in (2, 16):
        assert 0 < found[f"cores{cores}_lag_of_bound"] <= 1
        assert 0.9 < found[f"cores{cores}_jain_median"] <= 1
        assert found[f"cores{cores}_busy_percent"] > 99
    express = {figure["name"]: figure["value"] for figure in table["parts"]["express"]["figures"]}
    assert express["extra_core_calls"] == express["class_reserve_calls"] == 1


def test_the_pictures_are_whole(measured: tuple[dict[str, Any], Path]) -> None:
    """Three well-formed SVG files, each with a line for each world."""
    _, plots = measured
    for name in ("grant-time", "lag", "jain"):
        picture = ElementTree.parse(plots / f"{name}.svg").getroot()
        assert len(picture.findall("{http://www.w3.org/2000/svg}polyline")) == 2


def test_an_unknown_part_is_named() -> None:
    """A word of usage, and exit code 2."""
    assert "no part is called speed; there are simulation" in _bench("--only", "calls,speed", code=2)
