"""What the guards read, from made-up cgroup trees and from this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import guards

GB = 1024**3


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cgroup mount, and a /proc/self/cgroup that names a v1 group and a v2 group in it."""
    mount = tmp_path / "cgroup"
    (mount / "memory" / "a" / "b").mkdir(parents=True)
    (mount / "cpu" / "a").mkdir(parents=True)
    (mount / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "self").write_text("4:memory:/a/b\n1:cpu:/a\n0::/outer/inner\n")
    monkeypatch.setattr(guards, "_MOUNT", mount)
    monkeypatch.setattr(guards, "_CGROUPS", tmp_path / "self")
    return mount


def test_the_setting_wins() -> None:
    """What the operator says is taken as said."""
    assert guards.memory_limit(12345) == (12345, "NIGHTMILL_MEMORY_LIMIT")


def test_without_any_limit_a_reserve_is_left(tree: Path) -> None:
    """On a machine without container limits the rest of it keeps a tenth, at least 256 MiB."""
    (tree / "memory" / "a" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (tree / "outer" / "memory.max").write_text("max\n")
    limit, source = guards.memory_limit(None)
    assert source == "physical memory less a reserve"
    assert 0 < limit <= guards.psutil.virtual_memory().total - 256 * 1024**2


@pytest.mark.parametrize(
    ("file", "version"),
    [("memory/a/memory.limit_in_bytes", 1), ("memory/a/b/memory.limit_in_bytes", 1), ("outer/memory.max", 2)],
)
def test_a_group_on_the_way_up_limits_us(tree: Path, file: str, version: int) -> None:
    """Own group or a parent, v1 or v2: its limit counts, and the answer names it."""
    (tree / file).write_text(f"{64 * 1024**2}\n")
    limit, source = guards.memory_limit(None)
    assert limit == 64 * 1024**2
    assert source == f"cgroup v{version} {(tree / file).parent}"


def test_the_smallest_limit_counts(tree: Path) -> None:
    """Of several limits the narrowest is taken."""
    (tree / "memory" / "a" / "memory.limit_in_bytes").write_text(str(90 * 1024**2))
    (tree / "outer" / "memory.max").write_text(str(80 * 1024**2))
    assert guards.memory_limit(None)[0] == 80 * 1024**2


def test_cache_that_can_be_dropped_is_not_used(tree: Path) -> None:
    """Usage is what remains without the file cache; available is what the limit leaves."""
    group = tree / "outer"
    (group / "memory.max").write_text("1000000")
    (group / "memory.current").write_text("900000")
    (group / "memory.stat").write_text("anon 1\ninactive_file 300000\nactive_file 100000\nslab_reclaimable 50000\n")
    assert guards.read_memory() == guards.Reading(used_bytes=450_000, available_bytes=550_000)


def test_a_cpu_quota_cuts_the_cores(tree: Path) -> None:
    """Half a core's quota leaves one worker; no quota leaves what affinity allows."""
    free = guards.cpu_limit()
    assert free >= 1
    (tree / "outer" / "cpu.max").write_text("50000 100000\n")
    assert guards.cpu_limit() == 1
    (tree / "outer" / "cpu.max").write_text("max 100000\n")
    assert guards.cpu_limit() == free
    (tree / "cpu" / "a" / "cpu.cfs_quota_us").write_text("100000\n")
    (tree / "cpu" / "a" / "cpu.cfs_period_us").write_text("100000\n")
    assert guards.cpu_limit() == 1


def test_disk_room_is_read_of_a_path_that_is_not_there_yet(tmp_path: Path) -> None:
    """A folder still to be made has the room of the place where it will be."""
    free = guards.disk_free_bytes(tmp_path / "not" / "yet")
    assert free > 0
