"""Sizes as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import UsageError
from engine.sizes import format_size, parse_size
from engine.sources.uri import parse_uri


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("17", 17),
        ("17 B", 17),
        ("1k", 1000),
        ("1Ki", 1024),
        ("50MB", 50_000_000),
        (" 1.5 gib ", 1536 * 2**20),
        ("0.29GB", 290_000_000),
        ("2TiB", 2 * 2**40),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    """Decimal and binary units, with or without the B, exactly."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "MB", "-1", "1,5GB", "1 PB", "1e3", "1i", "٣", "9" * 5000, "9999999999TB", "1 M B"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    """Nothing is guessed, and no size is larger than 63 bits hold."""
    with pytest.raises(ValueError, match=r"size|larger|digits"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (500_000_000, "500 MB"),
        (1536 * 2**20, "1536 MiB"),
        (2 * 2**30, "2 GiB"),
        (7_421_300_001, "7.42 GB"),
        (74_213_000_001, "74.2 GB"),
        (742_130_000_001, "742 GB"),
        (-1, "-1 B"),
    ],
)
def test_sizes_are_shown(size: int, text: str) -> None:
    """Exact where a unit divides it, else three digits."""
    assert format_size(size) == text


@given(st.integers(0, 2**63 - 1))
def test_what_is_shown_can_be_read_and_is_near(size: int) -> None:
    """Reading what was shown gives the same to within half a percent."""
    assert abs(parse_size(format_size(size)) - size) <= size / 200


def test_a_source_uses_the_same_sizes() -> None:
    """`max_size` is written like every other size, and must be more than nothing."""
    assert parse_uri("folder:/x?max_size=1.5MiB").rules.max_size_bytes == 1536 * 1024
    for text in ("0", "", "much", "-5"):
        with pytest.raises(UsageError, match="is not a size; write it as max_size=50MB"):
            parse_uri(f"folder:/x?max_size={text}")
