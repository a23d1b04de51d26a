"""The memory bench judges rightly what it has seen, and its scans are what it says they are."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pymupdf
import pytest
from PIL import Image, ImageDraw

from tests.conftest import REPOSITORY

GIB = 1 << 30


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module. It and its parts lie beside each other, not in a package."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts" / "benches"))
    return importlib.import_module("memory")


@pytest.fixture
def world(bench: Any, tmp_path: Path) -> Any:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "A4.pdf").touch()
    return bench.World(folder=tmp_path, files=100, scan_pages=10)


def seen(bench: Any, seconds: float = 10.0, *, exit_code: int = 0, oom_kills: int = 0) -> Any:
    return bench.Watched(
        said="",
        complaints="",
        exit_code=exit_code,
        seconds=seconds,
        cpu_seconds=2 * seconds,
        peak_used_bytes=GIB // 2,
        peak_kernel_bytes=GIB,
        oom_kills=oom_kills,
        limit_hits=0,
        line=((0.0, 1.0), (seconds, 2.0)),
    )


def pool(bench: Any, workers: int, seconds: float, **how: int) -> Any:
    return bench.PoolRun(seen=seen(bench, seconds, **how), workers=workers, done={})


def test_the_best_count_that_survived_is_what_throughput_is_compared_with(bench: Any, world: Any) -> None:
    """A faster pool of which the kernel killed a process does not count."""
    mill = bench.MillRun(seen=seen(bench, 10.0), embedder="none", work={"ocr_pages": 10})
    pools = [pool(bench, 2, 9.0), pool(bench, 3, 8.0), pool(bench, 4, 5.0, exit_code=1, oom_kills=1)]
    part = bench._judged(world, GIB, {}, [mill], pools)
    (share,) = (figure for figure in part.figures if figure.name == "share")
    assert share.value == pytest.approx(0.8)
    assert share.missed
    assert not part.broken


def test_a_kill_and_a_file_that_would_fit_are_broken_promises(bench: Any, world: Any) -> None:
    """Files that alone need more than the limit, or that nobody can read, are not; scans always are."""
    alone = {
        "mixed/small.png": bench.Alone(peak_bytes=GIB - 1, failed=""),
        "mixed/large.png": bench.Alone(peak_bytes=GIB, failed=""),
        "mixed/odd.xls": bench.Alone(peak_bytes=1, failed="unsupported_type"),
    }
    lost = dict.fromkeys(alone, "failed out_of_memory") | {"scans/A4.pdf": "indexed partial"}
    mill = bench.MillRun(seen=seen(bench, oom_kills=2), embedder="none", work={"ocr_pages": 10}, lost=lost)
    broken = bench._judged(world, GIB, alone, [mill], []).broken
    assert broken == (
        "init, none: the kernel killed 2 processes for want of memory",
        "init, none: mixed/small.png: failed out_of_memory; alone it takes 1024 MiB",
        "init, none: scans/A4.pdf: indexed partial; a scan",
    )


def test_counts_that_cannot_win_are_not_tried(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as the cores first; more while they survive; fewer only when that many did not."""
    monkeypatch.setattr(bench.os, "sched_getaffinity", lambda pid: {0, 1})
    assert bench._in_order((1, 2, 3, 4)) == [2, 3, 4, 1]
    assert bench._worth_trying(3, [pool(bench, 2, 5.0)])
    assert not bench._worth_trying(4, [pool(bench, 2, 5.0), pool(bench, 3, 5.0, oom_kills=1)])
    assert not bench._worth_trying(1, [pool(bench, 2, 5.0)])
    assert bench._worth_trying(1, [pool(bench, 2, 5.0, exit_code=1)])


def test_scans_are_whole_page_images_without_text(bench: Any, tmp_path: Path) -> None:
    """Gray, colour and black-and-white pages at 300 dpi, the same bytes each time."""
    page = Image.new("L", (2480, 3509), 255)
    ImageDraw.Draw(page).rectangle((0, 0, 2480, 1700), fill=0)
    page.save(tmp_path / "page.png")
    sources = bench.find_sources(tmp_path)
    for path in (tmp_path / "one.pdf", tmp_path / "two.pdf"):
        bench.write_scan(path, "A4", 3, sources)
    assert (tmp_path / "one.pdf").read_bytes() == (tmp_path / "two.pdf").read_bytes()
    with pymupdf.open(tmp_path / "one.pdf") as document:
        assert not document.is_repaired
        images = [document.get_page_images(number)[0] for number in range(3)]
        assert [(image[2], image[3], image[5], image[8]) for image in images] == [
            (2480, 3508, "DeviceGray", "DCTDecode"),
            (2480, 3508, "DeviceRGB", "DCTDecode"),
            (2480, 3508, "DeviceGray", "CCITTFaxDecode"),
        ]
        for shown in document:
            assert (round(shown.rect.width), round(shown.rect.height)) == (595, 842)
            assert not shown.get_text().strip()
            pixels = shown.get_pixmap(dpi=20, colorspace=pymupdf.csGRAY)
            assert pixels.pixel(80, 40)[0] < 60
            assert pixels.pixel(80, 200)[0] > 200
