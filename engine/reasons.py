"""The closed catalogue of reasons why an item, or a source, was not indexed.

Each reason is a code that scripts may rely on, whether it is a skip (by rule, nothing is wrong) or a failure, and
two sentences for people: what it means, and the way out. Each has a test that brings it about and a paragraph in
docs/reasons.md, which a test compares with this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Codes are stored in ledgers and read by scripts: never renamed, never reused."""

    # Skips: by rule.
    UNSUPPORTED_TYPE = "unsupported_type"
    EXCLUDED = "excluded"
    TOO_LARGE = "too_large"
    TOO_OLD = "too_old"
    SYMBOLIC_LINK = "symbolic_link"
    NOT_A_FILE = "not_a_file"
    # Failures of one item.
    UNKNOWN_TYPE = "unknown_type"
    EMPTY = "empty"
    MALFORMED = "malformed"
    UNREADABLE = "unreadable"
    VANISHED = "vanished"
    CHANGED_WHILE_READING = "changed_while_reading"
    ENCRYPTED = "encrypted"
    DAMAGED = "damaged"
    BOMB = "bomb"
    TOO_MUCH_TEXT = "too_much_text"
    OCR_FAILED = "ocr_failed"
    OCR_LANGUAGE_MISSING = "ocr_language_missing"
    OUT_OF_MEMORY = "out_of_memory"
    DEADLINE = "deadline"
    NO_PROGRESS = "no_progress"
    CRASHED = "crashed"
    KILLED = "killed"
    PROTOCOL = "protocol"
    EXTRACTOR_ERROR = "extractor_error"
    EMBEDDING_FAILED = "embedding_failed"
    DISK_FULL = "disk_full"
    # Failures of a source.
    SOURCE_MISSING = "source_missing"
    SOURCE_UNREADABLE = "source_unreadable"
    SOURCE_INCOMPLETE = "source_incomplete"
    REMOVALS_HELD = "removals_held"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the catalogue. `retry`: a later attempt, with the same bytes, may end otherwise."""

    skip: bool
    retry: bool
    meaning: str
    way_out: str


CATALOGUE: dict[Reason, Entry] = {
    Reason.UNSUPPORTED_TYPE: Entry(
        True, False, "The type is known, but Nightmill does not read it.", "Convert the file to a type that is read."
    ),
    Reason.EXCLUDED: Entry(
        True, False, "The source's own `exclude` pattern names it.", "Change the pattern of the source."
    ),
    Reason.TOO_LARGE: Entry(
        True, False, "The item is larger than the source's `max_size`.", "Raise `max_size` of the source."
    ),
    Reason.TOO_OLD: Entry(True, False, "The item is older than the source's `since`.", "Change `since` of the source."),
    Reason.SYMBOLIC_LINK: Entry(
        True, False, "A symbolic link; links are not followed.", "Add the target as a source of its own."
    ),
    Reason.NOT_A_FILE: Entry(
        True, False, "A device, socket or named pipe; it has no content to index.", "Nothing to do; it may be excluded."
    ),
    Reason.UNKNOWN_TYPE: Entry(
        False, False, "The content is of no type that could be recognised.", "Check the file; exclude it if it is data."
    ),
    Reason.EMPTY: Entry(False, False, "The file has no bytes.", "Restore its content, or exclude it."),
    Reason.MALFORMED: Entry(
        False, False, "What was handed over is not of a form that can be kept.", "Give what the detail asks for."
    ),
    Reason.UNREADABLE: Entry(
        False, True, "The operating system refused to read it.", "Give the engine's account the right to read it."
    ),
    Reason.VANISHED: Entry(
        False, True, "It was listed, and gone when it was to be read.", "Nothing to do; the next run looks again."
    ),
    Reason.CHANGED_WHILE_READING: Entry(
        False, True, "It was written to while it was copied.", "Nothing to do; the next run takes it when it is quiet."
    ),
    Reason.ENCRYPTED: Entry(
        False, False, "It opens only with a password.", "Store a copy without the password, or exclude it."
    ),
    Reason.DAMAGED: Entry(
        False, False, "It claims a type that its content does not keep to.", "Open and save it in its own program."
    ),
    Reason.BOMB: Entry(
        False, False, "It would unpack to more than is allowed.", "Split it, or exclude it if nobody needs it."
    ),
    Reason.TOO_MUCH_TEXT: Entry(
        False, False, "It has more text than the limit, and could not be cut.", "Split the document."
    ),
    Reason.OCR_FAILED: Entry(
        False, True, "The text of its pages could not be recognised.", "Look at the page images; retry the item."
    ),
    Reason.OCR_LANGUAGE_MISSING: Entry(
        False, True, "A language of NIGHTMILL_OCR_LANGUAGES has no data.", "Install the language's tessdata package."
    ),
    Reason.OUT_OF_MEMORY: Entry(
        False,
        True,
        "Reading it took more memory than it was given, twice, or surely takes more than there is.",
        "Raise NIGHTMILL_MEMORY_LIMIT.",
    ),
    Reason.DEADLINE: Entry(
        False, True, "Reading it took more time than is reasonable for its size.", "Split the document, or exclude it."
    ),
    Reason.NO_PROGRESS: Entry(
        False, True, "Its worker stood still and was stopped.", "Retry the item; report the file if it happens again."
    ),
    Reason.CRASHED: Entry(
        False, True, "Its worker crashed while reading it, twice.", "Report the file with the signal that is shown."
    ),
    Reason.KILLED: Entry(
        False, True, "Its worker was killed from outside, again and again.", "See who kills: the kernel's log tells."
    ),
    Reason.PROTOCOL: Entry(
        False, True, "Its worker answered nonsense and was stopped.", "Report the file: it may be an attack."
    ),
    Reason.EXTRACTOR_ERROR: Entry(
        False, True, "The program that reads this type failed on it.", "Report the file with the detail that is shown."
    ),
    Reason.EMBEDDING_FAILED: Entry(
        False, True, "Its text could not be turned into vectors.", "Check `nightmill doctor`, then retry."
    ),
    Reason.DISK_FULL: Entry(False, True, "There was no room on the disk for it.", "Free space, then start again."),
    Reason.SOURCE_MISSING: Entry(
        False, True, "The folder or file of the source is not there.", "Mount or restore it, or remove the source."
    ),
    Reason.SOURCE_UNREADABLE: Entry(
        False, True, "The source may not be read.", "Give the engine's account the right to read it."
    ),
    Reason.SOURCE_INCOMPLETE: Entry(
        False,
        True,
        "A part of the source could not be listed; nothing of it is removed.",
        "Mend what the detail names.",
    ),
    Reason.REMOVALS_HELD: Entry(
        False,
        True,
        "Much of the source vanished at once; removals wait.",
        "Run again, or confirm at once with `--accept-removals`.",
    ),
}
