"""The values that go into an index and come out of it.

Rule: frozen, and nothing but data. `source` is the number of a place a user's items come from; `key` names an item
within it for ever; versions (`extract`, `chunking`, `model`) are words whose only use is to be compared. Texts hold no
lone surrogates: SQLite stores UTF-8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

#: An item: (source, key).
ItemKey: TypeAlias = tuple[int, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A slice of a document that becomes one vector.

    kind      what the vector stands for
    text      what was embedded, and is shown as passage
    keywords  ready-made tokens, separated by single blanks; without ASCII punctuation, in lower case
    page      the page it begins on, 0 where there are no pages
    """

    kind: str
    text: str
    keywords: str
    page: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """As which content an item was last read; `chunks` are cut but not yet published, None if there are none."""

    fingerprint: str
    content: str
    chunking: str | None = None
    chunks: tuple[Chunk, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An item as it is to be published.

    content   names its bytes; equal contents share one document
    extract   version of the extraction; `chunking`: of the cutting; `model`: that embedded its chunks, "" for none yet
    kind      what the item is to the person who searches
    path      for people
    date      seconds since the epoch, None where the item has none
    facts     short texts by name
    partial   a part of the item could not be read
    """

    source: int
    key: str
    fingerprint: str
    content: str
    extract: str
    chunking: str
    model: str
    kind: str
    media_type: str
    title: str
    path: str
    date: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    partial: bool = False
    chunks: tuple[Chunk, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What decides whether a published item is still up to date."""

    fingerprint: str
    extract: str
    chunking: str
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which items a search may return. An empty tuple or None allows all.

    since, until  seconds since the epoch: since <= date < until. Items without a date are out when either is given.
    """

    sources: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None
    media_types: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One item that was found, and the chunk that speaks best for it: `passage`, of kind `chunk_kind`, on `page`.

    `score` orders the hits of one search (higher is better) and means nothing beyond it.
    """

    source: int
    key: str
    kind: str
    media_type: str
    title: str
    path: str
    date: float | None
    facts: Mapping[str, str]
    page: int
    passage: str
    chunk_kind: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexStats:
    """What is published.

    vectors      chunks that have a vector of `model`
    faiss_count  vectors in the FAISS file, 0 where there is none
    bytes        on disk, database, log and FAISS files together
    """

    items: int
    chunks: int
    vectors: int
    generation: int
    model: str
    faiss_count: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FaissFile:
    """The FAISS file that belongs to the published state.

    name        in the user's folder
    count       vectors in it; ids are those of chunks
    last_chunk  chunks with a higher id are newer than the file
    bytes       its size, so that a file that was cut short is not opened
    generation  published state that it was built from
    """

    name: str
    count: int
    last_chunk: int
    bytes: int
    generation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FaissPlan:
    """A FAISS file should be built, of about `count` vectors with `dim` numbers each."""

    count: int
    dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written for a FAISS build: `count` vectors of `dim` numbers by `model`, of chunks up to `last_chunk`,
    as they stood in `generation`."""

    count: int
    dim: int
    last_chunk: int
    model: str
    generation: int
