"""What can be wrong with a user's index. Every message names the index, the reason and the way out.

    IndexFault            the database cannot be used as things are: no room, no permission, another file system
    +-- IndexFull         the disk has no room for what was to be written; what was there before stays
    +-- IndexBusy         another process writes this index
    +-- NewerIndex        it was written by a newer release
    +-- IndexDamaged      a file is not what was written
    +-- NoIndex           nothing was ever published here

Wrong arguments are ValueError: a defect of the caller, not of the index.
"""

from __future__ import annotations


class IndexFault(Exception):  # noqa: N818 - a state of the index, named as people say it
    """The index cannot be used as things are."""


class IndexFull(IndexFault):
    """The disk has no room. Nothing of what was to be written is kept, and all that was there before is."""


class IndexBusy(IndexFault):
    """Another process holds the lock of this index, or kept its database busy for too long."""


class NewerIndex(IndexFault):
    """The schema has a higher number than this release knows."""


class IndexDamaged(IndexFault):
    """A file of the index is not what was written. It is derived data: erase it and index the user anew."""


class NoIndex(IndexFault):
    """There is no index in the folder."""
