"""The hostile bench reads the log as it is written, and sees who is over its promise, for how long, and who hangs."""

from __future__ import annotations

import importlib
import logging
from datetime import datetime
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.clock import SystemClock
from engine.model import LeaseId
from engine.policy.tokens import Limits
from engine.promises import Promises
from engine.telemetry import set_up_logging
from tests.conftest import REPOSITORY

MB = 10**6


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module. It and its parts lie beside each other, not in a package."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts" / "benches"))
    return importlib.import_module("hostile")


@pytest.fixture
def witness(bench: Any) -> Any:
    return importlib.import_module("hostile_files.witness")


def test_it_reads_what_the_engine_writes(witness: Any) -> None:
    """The lines of a real promise, through the log as the command line sets it up."""
    before = datetime.now().timestamp()
    stream = StringIO()
    set_up_logging("debug", stream)
    try:
        supervisor = SimpleNamespace(allow=lambda *_, **__: None)
        limits = Limits(max_total_workers=20, max_workers_per_user=5, cpu_limit=2, memory_limit_bytes=2**30)
        promises = Promises(supervisor, SystemClock(), lambda: limits)  # type: ignore[arg-type]
        worker: Any = SimpleNamespace(unit=3, watched=SimpleNamespace(pid=77, started=1.0))
        lease = LeaseId("s/1")
        logging.getLogger("engine.coordinator").debug(
            "lease %s: unit %s of %s, %s orders of %s, worker %s, %s bytes promised, %.0f CPU seconds allowed",
            *(lease, 3, "ann: or so", 2, "extract", 1, 100 * MB, 120.4),
        )
        promises.begin(lease, worker, promised_bytes=100 * MB, ceiling_bytes=2**31)
        promises.end(lease)
        promises.end(lease)
    finally:
        set_up_logging("warning", StringIO())
    found = witness.leases_of(stream.getvalue().splitlines())
    assert list(found) == ["s/1"]
    assert (found["s/1"].pid, found["s/1"].allowed_seconds) == (77, 120.0)
    ((since, promised),) = found["s/1"].promised
    assert promised == 100 * MB
    assert before - 0.001 <= since <= found["s/1"].ended <= datetime.now().timestamp()


def looks(witness: Any, *megabytes: int, cpu_each: float = 0.0) -> dict[int, list[Any]]:
    """Of process 7, every 0.02 s from second 10 on."""
    return {
        7: [
            witness.Look(at=10.0 + 0.02 * number, resident_bytes=held * MB, cpu_seconds=number * cpu_each)
            for number, held in enumerate(megabytes)
        ]
    }


def lease(witness: Any, *promised: tuple[float, int], allowed: float = 60.0, ended: float | None = None) -> Any:
    found = witness.Lease(pid=7, allowed_seconds=allowed, ended=ended)
    found.promised += [(since, held * MB) for since, held in promised]
    return found


@pytest.mark.parametrize(
    ("held", "promised", "longest"),
    [
        pytest.param([100] * 30, [(9.0, 100)], 0.0, id="within"),
        pytest.param([125] * 30, [(9.0, 100)], 0.0, id="a quarter over"),
        pytest.param([126] * 30, [(9.0, 100)], 0.6, id="further"),
        pytest.param([126] * 10 + [90] + [126] * 5, [(9.0, 100)], 0.2, id="with a break"),
        pytest.param([150] * 30, [(9.0, 100), (10.099, 150)], 0.1, id="until it is promised more"),
        pytest.param([300] * 10 + [100] * 20, [(10.21, 100)], 0.0, id="before it has the unit"),
    ],
)
def test_who_is_over_its_promise(
    witness: Any, held: list[int], promised: list[tuple[float, int]], longest: float
) -> None:
    seen = witness.judge(looks(witness, *held), [lease(witness, *promised)])
    assert seen.longest_over == pytest.approx(longest)
    assert (seen.leases, seen.looks > 0) == (1, True)


def test_what_comes_after_the_unit_is_not_its_own(witness: Any) -> None:
    """Nor is what another process does, and a unit that nobody saw is not counted as seen."""
    held = looks(witness, *[100] * 10, *[500] * 10)
    seen = witness.judge(held, [lease(witness, (9.0, 100), ended=10.19), lease(witness, (50.0, 1))])
    assert (seen.longest_over, seen.leases, seen.looks) == (0.0, 1, 10)


def test_who_works_beyond_its_deadline(witness: Any) -> None:
    seen = witness.judge(looks(witness, *[1] * 11, cpu_each=1.0), [lease(witness, (9.0, 100), allowed=7.5)])
    assert seen.longest_overtime == pytest.approx(2.5)


def test_what_is_wrong_is_said(bench: Any, witness: Any) -> None:
    """Each kind of broken promise by its name; a run without fault says nothing."""
    fine = witness.Verdict(leases=1, looks=1, longest_over=0.3, most_share=1.4, longest_overtime=1.0)
    bad = witness.Verdict(leases=0, looks=0, longest_over=0.31, most_share=9.0, longest_overtime=1.1)
    items = [
        bench.Item(path="good", state="indexed", reason=None, partial=False),
        bench.Item(path="bomb", state="failed", reason="bomb", partial=False),
    ]
    assert bench._wrong(items, frozenset({"good"}), fine) == []
    wrong = [
        bench.Item(path="half", state="indexed", reason="crashed", partial=True),
        bench.Item(path="late", state="pending", reason=None, partial=False),
        bench.Item(path="mute", state="failed", reason=None, partial=False),
    ]
    assert bench._wrong(wrong, frozenset({"half", "lost"}), bad) == [
        "late: pending is no end",
        "mute: failed for no reason of the catalogue: None",
        "half: honest, and not indexed whole",
        "lost: honest, and not indexed whole",
        "no worker was seen with a unit: the log or the looks are broken",
        "a worker was more than 1.25 times its promise for 0.31 s",
        "a worker went on for 1.1 CPU seconds beyond its deadline",
    ]


def test_honest_files_lie_between_the_hostile_ones(bench: Any, tmp_path: Path) -> None:
    for name in ("a.bin", "m.bin", "z.bin"):
        (tmp_path / name).write_bytes(b"")
    given = SimpleNamespace(files=tmp_path, every=1, bombs=False, honest=4)
    honest = bench._make_home(tmp_path / "home", given)
    names = sorted(path.name for path in (tmp_path / "home").iterdir())
    assert len(honest) == 4
    assert [name in honest for name in names] == [False, True, True, False, True, False, True]
