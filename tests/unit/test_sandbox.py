"""The sandbox's rules as values: what a filter answers to each call, on both machines, and which trees are opened."""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import CannotRunError
from engine.workers import landlock, sandbox, seccomp
from engine.workers.landlock import open_trees
from engine.workers.sandbox import Needs, Protections, find_protections, needs_of
from engine.workers.seccomp import CLONE, CLONE3, IOCTL, MACHINES, MMAP, NEWEST, OWN, PROGRAMS, TABLE, WORDS, program
from tests.conftest import REPOSITORY

OURS = 4711
ALLOWED, KILLED = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
THREAD = 0x3D0F00  # what glibc asks for: CLONE_VM, FS, FILES, SIGHAND, THREAD, SYSVSEM, SETTLS, ...


def answer(code: bytes, machine: str, number: int, *words: int, mark: int | None = None) -> int:
    """What the filter says to a call: the four kinds of instruction that it is made of, as linux/filter.h has them."""
    arguments = (*words, *([0] * (6 - len(words))))
    data = struct.pack("<IIQ6Q", number, MACHINES[machine].mark if mark is None else mark, 0, *arguments)
    loaded, at = 0, 0
    while True:
        what, if_so, else_, value = struct.unpack_from("=HBBI", code, 8 * at)
        at += 1
        match what:
            case 0x20:
                (loaded,) = struct.unpack_from("<I", data, value)
            case 0x06:
                return int(value)
            case 0x15:
                at += if_so if loaded == value else else_
            case 0x35:
                at += if_so if loaded >= value else else_
            case 0x45:
                at += if_so if loaded & value else else_
            case _:
                raise AssertionError(f"instruction {what:#x}")


@pytest.fixture(params=sorted(MACHINES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def column(name: str) -> int:
    return MACHINES[name].column


def test_calls_of_the_table_are_refused_and_files_are_not(name: str, column: int) -> None:
    """With programs and without; reading, writing, opening and memory are not the filter's business."""
    free = {"x86_64": (0, 1, 3, 9, 257, 202, 231), "aarch64": (63, 64, 57, 222, 56, 98, 94)}[name]
    for programs in (False, True):
        code = program(name, own_pid=OURS, programs=programs)
        for call, numbers in TABLE.items():
            if numbers[column] is not None:
                assert answer(code, name, numbers[column]) == EPERM, call
        for call, numbers in PROGRAMS.items():
            if numbers[column] is not None:
                assert answer(code, name, numbers[column]) == (ALLOWED if programs else EPERM), call
        assert {answer(code, name, number) for number in free} == {ALLOWED}


def test_calls_by_argument(name: str, column: int) -> None:
    """Signals, limits and scheduling reach the process itself alone; words that hurt others are refused."""
    code = program(name, own_pid=OURS, programs=False)
    for call, (numbers, argument, zero_too) in OWN.items():
        before = [99] * argument
        assert answer(code, name, numbers[column], *before, OURS) == ALLOWED, call
        assert answer(code, name, numbers[column], *before, 1) == EPERM, call
        assert answer(code, name, numbers[column], *before, 0xFFFFFFFF) == EPERM, call
        assert answer(code, name, numbers[column], *before, 0) == (ALLOWED if zero_too else EPERM), call
    for call, (numbers, argument, values) in WORDS.items():
        for value in values:
            assert answer(code, name, numbers[column], *[99] * argument, value) == EPERM, call
            assert answer(code, name, numbers[column], *[99] * argument, value | 1 << 40) == EPERM, call
        assert answer(code, name, numbers[column], *[99] * argument, 0x5401) == ALLOWED, call


def test_the_pipe_is_no_way_to_the_network_and_memory_is_ones_own(name: str, column: int) -> None:
    """Any socket would do to ask for network cards; what is shared and no file's is counted at nobody."""
    code = program(name, own_pid=OURS, programs=True)
    for command in (0x8901, 0x8912, 0x8914, 0x8946, 0x89F0, 0x89FF):
        assert answer(code, name, IOCTL[column], 3, command) == EPERM
    for command in (0x5401, 0x88FF, 0x8A00, 0x5421):
        assert answer(code, name, IOCTL[column], 3, command) == ALLOWED
    for flags in (0x21, 0x23, 0x8021, 0x4022 | 1):
        assert answer(code, name, MMAP[column], 0, 4096, 3, flags) == EPERM
    for flags in (0x22, 0x02, 0x01, 0x4022, 0x20022):
        assert answer(code, name, MMAP[column], 0, 4096, 3, flags) == ALLOWED


def test_threads_may_be_started_and_processes_only_for_programs(name: str, column: int) -> None:
    """No namespace and no sibling in either case; clone3, whose flags a filter cannot see, is not there."""
    for programs in (False, True):
        code = program(name, own_pid=OURS, programs=programs)
        assert answer(code, name, CLONE[column], THREAD) == ALLOWED
        assert answer(code, name, CLONE[column], 17) == (ALLOWED if programs else EPERM)
        for strange in (0x20000, 0x10000000, 0x40000000, 0x8000):
            assert answer(code, name, CLONE[column], THREAD | strange) == EPERM
            assert answer(code, name, CLONE[column], 17 | strange) == EPERM
        assert answer(code, name, CLONE3[column]) == ENOSYS


def test_other_machines_and_newer_calls(name: str) -> None:
    """A call in another machine's manner ends the process; x32 and what was made later do not exist."""
    code = program(name, own_pid=OURS, programs=True)
    assert answer(code, name, 0, mark=0x40000003) == KILLED
    assert answer(code, name, NEWEST + 1) == ENOSYS
    assert answer(code, name, 0x40000000 | 41) == ENOSYS
    assert answer(code, name, 0xFFFFFFFF) == ENOSYS


@pytest.mark.parametrize(
    ("column", "header", "form"),
    [
        (0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", r"#define __NR_(\w+) (\d+)"),
        (1, "/usr/include/asm-generic/unistd.h", r"#define __NR(?:3264)?_(\w+) (\d+)"),
    ],
)
def test_numbers_are_those_of_the_kernels_headers(column: int, header: str, form: str) -> None:
    """Each call that the installed headers know has the number that they say."""
    if not Path(header).is_file():
        pytest.skip(f"{header} is not installed (linux-libc-dev)")
    known = {call: int(number) for call, number in re.findall(form, Path(header).read_text())}
    ours = {**TABLE, **PROGRAMS, "clone": CLONE, "clone3": CLONE3, "mmap": MMAP}
    ours |= {call: numbers for call, (numbers, *_) in (*OWN.items(), *WORDS.items())}
    compared = {call: numbers[column] for call, numbers in ours.items() if call in known}
    assert len(compared) > 100
    assert compared == {call: known[call] for call in compared}


def test_a_tree_with_a_closed_folder_is_opened_around_it(tmp_path: Path) -> None:
    """Its children without that folder, at any depth; links are left out, since they may lead into it."""
    for folder in ("lib/python", "srv/nightmill/indexes", "srv/nightmill/venv", "srv/www"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "srv" / "notes").touch()
    (tmp_path / "srv" / "link").symlink_to(tmp_path / "srv" / "nightmill")
    data = tmp_path / "srv" / "nightmill"
    assert open_trees(tmp_path, []) == [tmp_path]
    assert open_trees(tmp_path, [data, data / "indexes"]) == [
        tmp_path / "lib",
        tmp_path / "srv" / "notes",
        tmp_path / "srv" / "www",
    ]
    assert open_trees(data, [data]) == []
    assert open_trees(data / "venv", [data, data / "indexes"]) == [data / "venv"]
    assert open_trees(data / "indexes", [data, data / "indexes"]) == []


def test_only_text_recognition_needs_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folders of its languages, with what links in them lead to; programs for one backend alone."""
    (tmp_path / "real").write_text("data")
    (tmp_path / "eng.traineddata").symlink_to(tmp_path / "real")
    monkeypatch.setenv("TESSDATA_PREFIX", str(tmp_path))
    assert needs_of("engine.workers.extract", {}) == Needs()
    needs = needs_of("engine.workers.ocr", {"languages": ["eng"], "backend": "tesserocr"})
    assert needs.reads[:2] == (tmp_path, tmp_path / "eng.traineddata")
    assert not needs.programs
    assert needs_of("engine.workers.ocr", {"languages": ["eng"], "backend": "pytesseract"}).programs


def test_what_is_lacking_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without Landlock and a machine without a filter, each with its reason, in strict mode's words too."""

    def version() -> int:
        raise OSError(errno.ENOSYS, "the kernel has no Landlock")

    monkeypatch.setattr(landlock, "version", version)
    monkeypatch.setattr(seccomp, "machine", lambda: None)
    found = find_protections()
    assert (found.landlock, found.seccomp) == (0, False)
    machine = os.uname().machine
    assert found.lacking == {
        "Landlock": "the kernel has no Landlock",
        "seccomp": f"no seccomp filter was written for {machine}",
    }
    assert found.describe() == f"nothing (the kernel has no Landlock; no seccomp filter was written for {machine})"
    assert Protections(landlock=7, seccomp=True).describe() == "Landlock (ABI 7), seccomp"
    assert sandbox.cannot_be_strict(found.lacking).startswith("NIGHTMILL_SANDBOX = strict, and workers cannot be")
    assert CannotRunError.exit_code == 4


OLDER = """
import sys
from pathlib import Path
from engine.workers import landlock, sandbox
landlock.version = lambda: int(sys.argv[1])
place = Path(sys.argv[2])
rules = sandbox.Rules(inbox=place / "inbox", outbox=place / "outbox", packages=("engine",), private=(place,))
sandbox.confine(rules)
(place / "outbox" / "result").write_text((place / "inbox" / "given").read_text())
try:
    print((place / "other").read_text())
except PermissionError as error:
    print("refused", error.errno)
"""


@pytest.mark.parametrize("abi", [1, 3, 5])
def test_older_kernels_are_asked_for_what_they_know(tmp_path: Path, abi: int) -> None:
    """Landlock grew: rights and scopes of later versions are left out, and the two folders are all there is as ever."""
    if find_protections().lacking or find_protections().landlock < abi:
        pytest.skip(f"this kernel has no Landlock of version {abi}")
    for folder in ("inbox", "outbox"):
        (tmp_path / folder).mkdir()
    (tmp_path / "inbox" / "given").write_text("bytes")
    (tmp_path / "other").write_text("somebody's")
    command = [sys.executable, "-P", "-c", OLDER, str(abi), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"refused {errno.EACCES}\n", "")
    assert (tmp_path / "outbox" / "result").read_text() == "bytes"
