"""A seccomp filter: which system calls this process can still make. It refuses those that Landlock does not stop.

Rule: the filter is made by pure functions, from the machine and the process id alone, so that the one for another
machine can be tested here. What is refused is answered with an error, as a kernel without it would, so that libraries
go another way; only calls in the manner of another machine (32 bit) end the process.

    other machine? -> killed      newer than we know, clone3? -> ENOSYS (libc does without)
    in the table? -> EPERM        by its arguments: signals, limits and scheduling of others, processes -> EPERM
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

_INSTALL: Final = 1  # SECCOMP_SET_MODE_FILTER
_ALL_THREADS: Final = 1  # SECCOMP_FILTER_FLAG_TSYNC
_ASK_ACTION: Final = 2  # SECCOMP_GET_ACTION_AVAIL
_ALLOW: Final = 0x7FFF0000
_ERROR: Final = 0x00050000
_EPERM: Final = _ERROR | errno.EPERM
_KILL: Final = 0x80000000
#: linux/filter.h: load a word of what is known of the call; compare; end.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
#: seccomp_data: the call's number, the machine, then the arguments, eight bytes each, of which pids, commands and
#: flags use the lower four (both machines are little-endian).
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16
#: mseal, Linux 6.10. Later ones (setxattrat, open_tree_attr, file_setattr ...) do not exist in here until somebody has
#: looked at what they do; numbers with bit 30 set (x32) are larger as well.
NEWEST: Final = 462
_CLONE_THREAD: Final = 0x00010000
#: New namespaces (CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET), and a child of our parent
#: (CLONE_PARENT), which would not be in our group's care.
_STRANGE_CLONES: Final = 0x7E028000
#: linux/prctl.h: dying with the coordinator, and being the parent of orphans, were settled before.
_SETTLED: Final = (1, 36)
#: PR_SET_DUMPABLE: the coordinator, where it is not root, could no longer see what we hold.
_UNSEEN: Final = 4
#: fcntl: signals to whoever is named as a file's owner (F_SETOWN, F_SETSIG, F_SETOWN_EX); a lease, which holds up
#: others that open the file; word of what happens in a folder (F_NOTIFY); a pipe of another size, which nobody counts.
_WRONG_COMMANDS: Final = (8, 10, 15, 1024, 1026, 1031)
#: Typing on a terminal (TIOCSTI, TIOCLINUX), immutable files (FS_IOC_SETFLAGS, FS_IOC32_SETFLAGS, FS_IOC_FSSETXATTR).
_WRONG_IOCTLS: Final = (0x5412, 0x541C, 0x40086602, 0x40046602, 0x401C5820)
#: Those of sockets (SIOC...), private ones among them: the worker's pipe is a socket, and any socket will do to ask for
#: the machine's network cards, and as root to switch them off.
_SOCKET_IOCTLS: Final = (0x8900, 0x8A00)
#: mmap of memory that is shared and no file's (MAP_SHARED and MAP_ANONYMOUS): what is let go of with madvise stays in
#: use, and is seen at no process.
_SHARED, _ANONYMOUS = 0x01, 0x20
#: MADV_PAGEOUT: what is swapped out is not seen either.
_PAGE_OUT: Final = 21


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One way of making system calls: its mark in seccomp_data (linux/audit.h), and which column of TABLE counts."""

    mark: int
    column: int


MACHINES: Final = {"x86_64": Machine(mark=0xC000003E, column=0), "aarch64": Machine(mark=0xC00000B7, column=1)}

# fmt: off
#: Refused whatever the arguments: name -> number on x86_64, number on aarch64 (None: not there).
TABLE: Final[Mapping[str, tuple[int | None, int | None]]] = {
    # Sockets. The worker's pipe is one, and is read and written as a file.
    "socket": (41, 198), "socketpair": (53, 199), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "connect": (42, 203), "getsockname": (51, 204), "getpeername": (52, 205),
    "sendto": (44, 206), "recvfrom": (45, 207), "sendmsg": (46, 211), "recvmsg": (47, 212),
    "sendmmsg": (307, 269), "recvmmsg": (299, 243), "setsockopt": (54, 208), "getsockopt": (55, 209),
    "shutdown": (48, 210),
    # Other processes: their memory, descriptors, signals, groups, priorities; and our own identity.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "setsid": (112, 157), "setpgid": (109, 154),
    "setpriority": (141, 140), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "setuid": (105, 146), "setgid": (106, 144), "setreuid": (113, 145), "setregid": (114, 143),
    "setresuid": (117, 147), "setresgid": (119, 149), "setfsuid": (122, 151), "setfsgid": (123, 152),
    "setgroups": (116, 159), "capset": (126, 91),
    # Ways around this filter, and into the kernel.
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "personality": (135, 92), "modify_ldt": (154, None),
    "ioperm": (173, None), "iopl": (172, None), "uselib": (134, None), "_sysctl": (156, None),
    "nfsservctl": (180, 42), "lookup_dcookie": (212, 18), "syslog": (103, 116),
    # File systems, and what is in files that Landlock does not close: owners, modes, times, attributes, lengths.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430), "fspick": (433, 433),
    "fsmount": (432, 432), "fsconfig": (431, 431), "mount_setattr": (442, 442), "statmount": (457, 457),
    "listmount": (458, 458), "swapon": (167, 224), "swapoff": (168, 225), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "acct": (163, 89), "unshare": (272, 97), "setns": (308, 268),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "truncate": (76, 45),
    "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
    "mknod": (133, None), "mknodat": (259, 33),
    # Who reads or writes what, without opening it.
    "inotify_init": (253, None), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27),
    "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    # Memory and queues that outlive the process, or that no limit of ours counts.
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "vmsplice": (278, 75), "io_setup": (206, 0),
    "semget": (64, 190), "semop": (65, 193), "semtimedop": (220, 192), "semctl": (66, 191),
    "mq_open": (240, 180), "mq_unlink": (241, 181),
    # The machine itself.
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162),
    "vhangup": (153, 58), "sync": (162, 81), "syncfs": (306, 267),
}
#: Refused unless programs may be run.
PROGRAMS: Final[Mapping[str, tuple[int | None, int | None]]] = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
}
# fmt: on
#: Allowed when an argument is our own process id: name -> numbers, which argument, whether 0 means us too.
OWN: Final[Mapping[str, tuple[tuple[int, int], int, bool]]] = {
    "kill": ((62, 129), 0, False),
    "tkill": ((200, 130), 0, False),
    "tgkill": ((234, 131), 0, False),
    "rt_sigqueueinfo": ((129, 138), 0, False),
    "rt_tgsigqueueinfo": ((297, 240), 0, False),
    "prlimit64": ((302, 261), 0, True),
    "sched_setaffinity": ((203, 122), 0, True),
}
IOCTL: Final = (16, 29)
MMAP: Final = (9, 222)
#: Refused when an argument has one of these values: name -> numbers, which argument, values.
WORDS: Final[Mapping[str, tuple[tuple[int, int], int, tuple[int, ...]]]] = {
    "prctl": ((157, 167), 0, (*_SETTLED, _UNSEEN)),
    "fcntl": ((72, 25), 1, _WRONG_COMMANDS),
    "madvise": ((28, 233), 2, (_PAGE_OUT,)),
    "ioctl": (IOCTL, 1, _WRONG_IOCTLS),
}
CLONE: Final = (56, 220)
CLONE3: Final = (435, 435)
_SECCOMP: Final = (317, 277)


def machine() -> str | None:
    """The name in MACHINES of the one that we run on; None for others, and for a 32-bit Python."""
    name = os.uname().machine
    return name if name in MACHINES and sys.maxsize > 2**32 and sys.byteorder == "little" else None


def find_obstacle() -> str | None:
    """Why no filter can be had here, in words for people; None: it can."""
    name = machine()
    if name is None:
        return f"no seccomp filter was written for {os.uname().machine}"
    action = ctypes.c_uint32(_ERROR)
    if ctypes.CDLL(None, use_errno=True).syscall(_SECCOMP[MACHINES[name].column], _ASK_ACTION, 0, ctypes.byref(action)):
        return f"the kernel has no seccomp filters, or they are forbidden here: {os.strerror(ctypes.get_errno())}"
    return None


def install(*, programs: bool) -> None:
    """Put the filter over all threads of this process, for good. Raises OSError.

    `landlock.forbid_new_rights` comes first. programs: other programs may be started, under the same filter.
    """
    name = machine()
    if name is None:
        raise OSError(errno.ENOSYS, find_obstacle())
    code = program(name, own_pid=os.getpid(), programs=programs)
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: how many instructions, and where.
    head = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    number = _SECCOMP[MACHINES[name].column]
    found = ctypes.CDLL(None, use_errno=True).syscall(number, _INSTALL, _ALL_THREADS, head)
    if found:
        # More than 0: the thread that could not follow.
        raise OSError(ctypes.get_errno() or errno.EBUSY, "seccomp: the filter was not taken")


def program(name: str, *, own_pid: int, programs: bool) -> bytes:
    """The filter for a machine, as the kernel takes it: eight bytes for each instruction."""
    here = MACHINES[name]
    column = here.column
    return b"".join(
        (
            *(_load(_MACHINE_AT), _jump(_IF_EQUAL, here.mark, 1, 0), _end(_KILL)),
            *(_load(_NUMBER_AT), _jump(_IF_AT_LEAST, NEWEST + 1, 0, 1), _end(_ERROR | errno.ENOSYS)),
            *(_jump(_IF_EQUAL, CLONE3[column], 0, 1), _end(_ERROR | errno.ENOSYS)),
            *_refusals(TABLE if programs else {**TABLE, **PROGRAMS}, column),
            *_conditions(column, own_pid, programs),
            _end(_ALLOW),
        )
    )


def _refusals(table: Mapping[str, tuple[int | None, int | None]], column: int) -> Iterator[bytes]:
    for numbers in table.values():
        if (number := numbers[column]) is not None:
            yield from (_jump(_IF_EQUAL, number, 0, 1), _end(_EPERM))


def _conditions(column: int, own_pid: int, programs: bool) -> Iterator[bytes]:
    """For each call that is judged by an argument: load it, compare, allow or refuse."""
    # First what is judged twice: an end of `_judged` is one for all.
    yield from (
        *(_jump(_IF_EQUAL, IOCTL[column], 0, 5), _load(_ARGUMENTS_AT + 8)),
        *(_jump(_IF_AT_LEAST, _SOCKET_IOCTLS[0], 0, 2), _jump(_IF_AT_LEAST, _SOCKET_IOCTLS[1], 1, 0), _end(_EPERM)),
        _load(_NUMBER_AT),
        *(_jump(_IF_EQUAL, MMAP[column], 0, 5), _load(_ARGUMENTS_AT + 24)),
        *(_jump(_IF_ANY_BIT, _SHARED, 0, 2), _jump(_IF_ANY_BIT, _ANONYMOUS, 0, 1), _end(_EPERM), _end(_ALLOW)),
    )
    for numbers, argument, zero_too in OWN.values():
        yield from _judged(numbers[column], argument, (own_pid, 0) if zero_too else (own_pid,), _ALLOW, _EPERM)
    for numbers, argument, values in WORDS.values():
        yield from _judged(numbers[column], argument, values, _EPERM, _ALLOW)
    threads_only = () if programs else (_jump(_IF_ANY_BIT, _CLONE_THREAD, 1, 0), _end(_EPERM))
    yield from (
        *(_jump(_IF_EQUAL, CLONE[column], 0, 4 + len(threads_only)), _load(_ARGUMENTS_AT)),
        *(_jump(_IF_ANY_BIT, _STRANGE_CLONES, 0, 1), _end(_EPERM), *threads_only, _end(_ALLOW)),
    )


def _judged(number: int, argument: int, values: tuple[int, ...], if_one: int, else_: int) -> Iterator[bytes]:
    count = len(values)
    yield from (_jump(_IF_EQUAL, number, 0, count + 3), _load(_ARGUMENTS_AT + 8 * argument))
    for index, value in enumerate(values):
        yield _jump(_IF_EQUAL, value, count - index, 0)
    yield from (_end(else_), _end(if_one))


def _load(offset: int) -> bytes:
    return struct.pack("=HBBI", _LOAD, 0, 0, offset)


def _jump(code: int, value: int, if_so: int, else_: int) -> bytes:
    return struct.pack("=HBBI", code, if_so, else_, value)


def _end(verdict: int) -> bytes:
    return struct.pack("=HBBI", _RETURN, 0, 0, verdict)
