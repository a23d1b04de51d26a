"""Words of strangers, made safe to store and to show on a terminal.

Rule: pure. Names of files, subjects of mails and messages of parsers are anybody's words: no control character of
theirs reaches a terminal.
"""

from __future__ import annotations


def printable(text: str, limit: int = 2000) -> str:
    """One line of at most `limit` characters."""
    whole = text[:limit].encode("utf-8", "replace").decode()
    return "".join(sign if sign.isprintable() else " " for sign in whole).strip()


def printable_lines(text: str) -> str:
    """A text of many lines, which stay; tabs too."""
    return "\n".join(
        "".join(sign if sign.isprintable() or sign == "\t" else " " for sign in line) for line in text.splitlines()
    )
