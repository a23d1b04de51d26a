"""Landlock by bare system calls: from now on this process may touch the paths that are named, and nothing else.

Rule: a right that the running kernel does not know is left out, never an error; the callers say what they want and are
told which version of Landlock (its ABI) there is. Nothing here can be undone. Linux's documentation,
userspace-api/landlock.rst, is the source of every number.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

EXECUTE: Final = 1 << 0
WRITE_FILE: Final = 1 << 1
READ_FILE: Final = 1 << 2
READ_DIR: Final = 1 << 3
REMOVE_FILE: Final = 1 << 5
MAKE_REG: Final = 1 << 8
TRUNCATE: Final = 1 << 14
IOCTL_DEV: Final = 1 << 15
READ: Final = READ_FILE | READ_DIR
#: All that the first version handles: the three above, directories, devices, sockets, FIFOs and links.
_FIRST: Final = (1 << 13) - 1
#: What later versions added: a name moved to another folder (2), truncation (3), ioctl of devices (5).
_ADDED: Final = ((2, 1 << 13), (3, TRUNCATE), (5, IOCTL_DEV))
#: The rights that a rule for one file may have.
_OF_FILES: Final = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
#: Version 4: bind and connect of TCP. Version 6: abstract Unix sockets and signals, when they leave the sandbox.
_NETWORK: Final = 0b11
_SCOPES: Final = 0b11
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION_QUERY: Final = 1
_PATH_BENEATH: Final = 1
_SET_NO_NEW_PRIVS: Final = 38


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Rights to one file, or to all that lies in one folder. `pin`: keep it open for this process's whole life, since
    files of /proc and /sys that nobody holds are made anew, and a rule belongs to the old one."""

    path: Path
    rights: int
    pin: bool = False


def version() -> int:
    """The ABI of the running kernel, 1 or more. Raises OSError where there is none; its text says why."""
    found = _libc().syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION_QUERY))
    if found > 0:
        return int(found)
    said = {
        errno.ENOSYS: "the kernel has no Landlock (Linux 5.13 and newer can have it)",
        errno.EOPNOTSUPP: "Landlock is not enabled (lsm= on the kernel's command line)",
        errno.EPERM: "the container forbids Landlock",
    }
    code = ctypes.get_errno()
    raise OSError(code, said.get(code, f"Landlock does not answer: {os.strerror(code)}"))


def restrict(grants: Iterable[Grant]) -> int:
    """Give up all rights to files but these, for the calling thread and all it starts; TCP, abstract Unix sockets and
    signals to others as well, where the kernel can.

    `forbid_new_rights` comes first. Answers with the ABI. A path that is not there is left out. Raises OSError when the
    kernel refuses.
    """
    abi = version()
    handled = _FIRST | sum(right for since, right in _ADDED if abi >= since)
    fields = [handled, *([_NETWORK] if abi >= 4 else []), *([_SCOPES] if abi >= 6 else [])]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = _call(_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    try:
        for grant in grants:
            _add(ruleset, grant, handled)
        _call(_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)
    return abi


def forbid_new_rights() -> None:
    """No program that is run from now on may have more rights than this process (no_new_privs). Raises OSError."""
    if _libc().prctl(_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0))):
        raise OSError(ctypes.get_errno(), "no_new_privs cannot be set")


def open_trees(tree: Path, closed: Sequence[Path]) -> list[Path]:
    """`tree`, or, where closed folders lie in it, its children without those: a rule counts for all that lies beneath,
    and nothing can be taken out of it again.

    All paths are real ones. A tree that lies within a closed folder is somebody's express wish, and stays.
    """
    inside = [folder for folder in closed if folder.is_relative_to(tree)]
    if not inside:
        return [tree]
    if tree in inside:
        return []
    try:
        # Links are left out: what they lead to is opened by its own path, or not at all.
        children = [Path(entry.path) for entry in os.scandir(tree) if not entry.is_symlink()]
    except OSError:
        return []
    return [part for child in sorted(children) for part in open_trees(child, inside)]


def _add(ruleset: int, grant: Grant, handled: int) -> None:
    try:
        descriptor = os.open(grant.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rights = grant.rights & handled
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_FILES
        if rights:
            rule = struct.pack("=Qi", rights, descriptor)
            _call(_ADD, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint(0))
    finally:
        if not grant.pin:
            os.close(descriptor)


def _call(number: int, *words: object) -> int:
    found = _libc().syscall(number, *words)
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"Landlock: {os.strerror(code)}")
    return int(found)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
