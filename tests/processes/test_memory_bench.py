"""The memory bench's limits are the kernel's: what outgrows one is killed, counted, and nothing is left behind."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

GROW = "import sys; held = bytearray(int(sys.argv[1]) << 20)"


def test_a_program_that_outgrows_its_group_is_killed_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that stays small is left alone; what it started is killed with the group, and the group is removed."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts" / "benches"))
    groups, runs = (importlib.import_module(f"memory_limits.{name}") for name in ("groups", "runs"))
    try:
        with groups.limited(64 << 20) as group:
            small = runs.watch(group, [sys.executable, "-c", GROW, "8"], {}, tmp_path, 60.0)
            large = runs.watch(group, [sys.executable, "-c", GROW, "128"], {}, tmp_path, 60.0)
            runs.watch(group, ["/bin/sh", "-c", "sleep 1000 & exit 3"], {}, tmp_path, 60.0)
            left = group.members()
    except groups.NoGroupError as error:
        pytest.skip(str(error))
    assert (small.exit_code, small.oom_kills) == (0, 0)
    assert (large.exit_code, large.oom_kills) == (-9, 1)
    assert large.peak_kernel_bytes > 32 << 20
    assert len(left) == 1
    assert not group.folder.exists()
