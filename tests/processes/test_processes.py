"""Processes have an identity, and a group ends as a whole."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from engine.processes import Watched, children, cpu_seconds, cpu_use, is_alive, kill_group, start_time, waited_seconds
from tests.mill import wait_until

FAMILY = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); sys.stdin.read()"


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A group of two: a leader and a helper that it started."""
    leader = subprocess.Popen(
        [sys.executable, "-c", FAMILY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert leader.stdout is not None
    helper = int(leader.stdout.readline())
    yield leader, helper
    kill_group(leader.pid, _started(leader.pid))
    leader.communicate()


def _started(pid: int) -> float:
    try:
        return start_time(pid)
    except ProcessLookupError:
        return 0.0


def test_the_same_id_at_another_time_is_another_process() -> None:
    """An id that was used again is not taken for the process that had it."""
    mine = start_time(os.getpid())
    assert is_alive(os.getpid(), mine)
    assert not is_alive(os.getpid(), mine - 1)
    with pytest.raises(ProcessLookupError):
        Watched(os.getpid(), mine - 1)


def test_a_zombie_is_not_alive() -> None:
    """A process that has ended and was not waited for runs nothing and counts as gone."""
    child = subprocess.Popen(["sleep", "600"])
    started = start_time(child.pid)
    watched = Watched(child.pid, started)
    assert not watched.wait_end(0.0)
    child.kill()
    assert watched.wait_end(5.0)
    assert not is_alive(child.pid, started)
    assert not watched.alive
    watched.close()
    child.wait()
    with pytest.raises(ProcessLookupError):
        start_time(child.pid)


def test_a_group_is_gone_when_the_call_returns(family: tuple[subprocess.Popen[str], int]) -> None:
    """The leader and the helpers it started are dead, not merely signalled."""
    leader, helper = family
    identity, helper_started = start_time(leader.pid), start_time(helper)
    assert kill_group(leader.pid, identity)
    assert not is_alive(leader.pid, identity)
    assert not is_alive(helper, helper_started)


def test_helpers_of_a_dead_leader_are_ended_too(family: tuple[subprocess.Popen[str], int]) -> None:
    """A leader that died on its own leaves nothing running in its group."""
    leader, helper = family
    identity, helper_started = start_time(leader.pid), start_time(helper)
    leader.kill()
    leader.wait()
    assert is_alive(helper, helper_started)
    assert kill_group(leader.pid, identity)
    assert not is_alive(helper, helper_started)


def test_somebody_elses_process_with_the_same_id_is_left_alone(family: tuple[subprocess.Popen[str], int]) -> None:
    """A start time that does not fit means that the listed process is gone: nobody is killed."""
    leader, helper = family
    identity = start_time(leader.pid)
    assert kill_group(leader.pid, identity - 1)
    assert is_alive(leader.pid, identity)
    assert is_alive(helper, start_time(helper))


def test_a_helper_that_was_waited_for_counts_as_use() -> None:
    """What a process uses is what it and the children that it has waited for use; who it is stands beside it."""
    before, alone = cpu_use(os.getpid()), cpu_seconds(os.getpid())
    subprocess.run([sys.executable, "-S", "-c", "import time\nwhile time.process_time() < 0.2: pass"], check=True)
    after = cpu_use(os.getpid())
    assert (after.started, after.parent) == (start_time(os.getpid()), os.getppid())
    assert after.seconds - before.seconds >= 0.15
    assert after.seconds - before.seconds > cpu_seconds(os.getpid()) - alone
    with pytest.raises(ProcessLookupError):
        cpu_use(2**22 + 1)


def test_our_own_group_is_never_killed() -> None:
    """A client file that names ourselves, or everybody, is an error."""
    for group in (os.getpgrp(), 0, 1, -1):
        with pytest.raises(ValueError, match="is not a worker's"):
            kill_group(group, 1.0)


def test_a_child_dies_with_its_parent() -> None:
    """With die_with_parent a child does not outlive a parent that is killed."""
    child_code = (
        "import os,sys,time; from engine.processes import die_with_parent; die_with_parent(int(sys.argv[1]));"
        "print(os.getpid(), flush=True); time.sleep(600)"
    )
    parent_code = "import os,subprocess,sys; subprocess.run([sys.executable,'-c',sys.argv[1],str(os.getpid())])"
    parent = subprocess.Popen(
        [sys.executable, "-c", parent_code, child_code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    watched = Watched(child, start_time(child))
    parent.kill()
    parent.communicate()
    assert watched.wait_end(5.0)
    watched.close()


def test_who_waits_for_a_core_is_known() -> None:
    """Two that compute on one core wait for each other; one that sleeps waits for nobody."""
    if not os.path.exists("/proc/self/schedstat"):
        pytest.skip("this kernel does not count how long processes wait for a core")
    core = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    busy = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    try:
        wait_until(lambda: all(waited_seconds(each.pid) > 0.1 for each in busy), "both have waited")
    finally:
        for each in busy:
            each.kill()
            each.wait()
    assert waited_seconds(busy[0].pid) == 0.0


@pytest.mark.parametrize(("soft", "hard", "after"), [(64, 100, 100), (64, 200, 128), (150, 200, 150)])
def test_the_limit_of_open_files_is_raised_as_far_as_it_goes_and_never_lowered(
    soft: int, hard: int, after: int
) -> None:
    """A soft limit below what a run needs is no reason to fail where the system would allow more."""
    script = (
        "import resource; from engine.processes import allow_descriptors\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "allow_descriptors(128)\n"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(after), str(hard)]


def test_what_any_thread_has_started_is_a_child() -> None:
    """Not the first thread's alone: who wants to hide a process starts it from another."""
    program = (
        "import os, subprocess, threading\n"
        "def start():\n"
        "    print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid, flush=True)\n"
        "    threading.Event().wait()\n"
        "threading.Thread(target=start).start()\n"
    )
    leader = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, process_group=0)
    started = start_time(leader.pid)
    try:
        assert leader.stdout is not None
        started_by_it = int(leader.stdout.readline())
        assert children(leader.pid) == [started_by_it]
    finally:
        assert kill_group(leader.pid, started)
        leader.communicate()
    assert children(leader.pid) == []
