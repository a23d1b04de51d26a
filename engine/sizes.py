"""Sizes as people write them: `50MB`, `1.5 GiB`, `2g`. Pure; bytes are whole numbers everywhere else."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

_UNITS: Final = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?i?B?)", re.IGNORECASE | re.ASCII)
#: What SQLite, the kernel's limits and struct can hold.
_LARGEST: Final = 2**63 - 1
_SHOWN: Final = (
    ("TiB", 2**40),
    ("TB", 10**12),
    ("GiB", 2**30),
    ("GB", 10**9),
    ("MiB", 2**20),
    ("MB", 10**6),
    ("KiB", 2**10),
    ("KB", 10**3),
)


def parse_size(text: str) -> int:
    """Bytes. KB, MB, GB, TB are powers of 1,000; KiB, MiB, GiB, TiB of 1,024; the B may be left out; case is free.

    Raises ValueError for what is no size and for more than 2**63 - 1 bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = match.group(2).upper() if match else ""
    factor = _UNITS.get(unit, _UNITS.get(unit + "B"))
    if match is None or factor is None:
        raise ValueError(f"{text!r} is not a size")
    # Fractions, because 0.29 GB as a float is 289,999,999 bytes.
    size = int(Fraction(match.group(1)) * factor)
    if size > _LARGEST:
        raise ValueError(f"{text!r} is larger than any disk")
    return size


def format_size(size_bytes: int) -> str:
    """Short text for people: exact where a unit divides it (`1536 MiB`, `500 MB`), else rounded (`7.42 GB`)."""
    for name, factor in _SHOWN:
        if size_bytes and size_bytes % factor == 0 and size_bytes // factor < 10_000:
            return f"{size_bytes // factor} {name}"
    for name, factor in _SHOWN:
        if size_bytes >= factor and "i" not in name:
            value = size_bytes / factor
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {name}"
    return f"{size_bytes} B"
