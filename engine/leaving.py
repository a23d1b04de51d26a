"""What leaves: a whole user, or some of a user's sources; and the proof that nothing is left.

Rule: the user's lock is held from beginning to end, so that no run puts back what is being taken out. The ledger goes
first: from then on nothing is found, and a kill in between leaves a folder that the same command removes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from engine.errors import CannotRunError, UsageError
from engine.model import RunId, UserId
from engine.ports import Ledger
from engine.sources import given
from engine.sources.uri import parse_uri
from indexes import lock, paths
from indexes.errors import IndexBusy
from indexes.writer import open_writer

#: Belongs to no run: what an operator did by hand.
_BY_HAND = RunId(0)


def erase_user(user: UserId, *, ledger: Ledger | None, root: Path) -> tuple[int, int]:
    """Forget the user and destroy the index: how many files with how many bytes.

    Raises UsageError when there is neither a user nor an index of that name, CannotRunError when a run is working on
    the user or a file resists.
    """
    folder = paths.user_dir(root, user)
    known = ledger is not None and ledger.find_user(user) is not None
    if not known and not folder.is_dir():
        raise UsageError(
            f"there is no user {user!r}, and no index under that name: nothing of it is left; "
            "`nightmill users list` names those there are"
        )
    folder = paths.make_user_dir(root, user)
    held = _take_lock(user, folder)
    try:
        if known and ledger is not None:
            ledger.remove_user(user)
        found = [path for path in folder.rglob("*") if path.is_file() and path.name != lock.NAME]
        size = sum(path.stat().st_size for path in found)
        paths.erase(folder, lock_fd=held)
    except OSError as error:
        raise CannotRunError(f"{folder} could not be removed: {error}; mend that, then erase again") from None
    finally:
        os.close(held)
    if folder.exists():
        raise CannotRunError(f"{folder} is still there; remove it by hand")
    return len(found), size


def remove_sources(user: UserId, uris: Sequence[str], *, ledger: Ledger, root: Path) -> int:
    """Forget sources of a user, and take their items out of the index at once: how many.

    Raises UsageError for a source that the user does not have, CannotRunError when a run is working on the user or a
    file resists.
    """
    known = {source.uri: source.id for source in ledger.sources(user)}
    for uri in uris:
        if uri not in known:
            raise UsageError(f"{user} has no source {uri!r}; there are {', '.join(known) or 'none'}")
    try:
        folder = paths.make_user_dir(root, user)
    except OSError as error:
        raise CannotRunError(f"the index of {user} cannot be used: {error}; mend that, then remove again") from None
    held = _take_lock(user, folder)
    try:
        for parsed in map(parse_uri, uris):
            if parsed.scheme == given.SCHEME:
                # What was handed over is ours to destroy. First: after a kill the source is still there to remove.
                _forget_given(folder, parsed.path)
        for uri in uris:
            ledger.remove_source(known[uri])
        departed = ledger.departed(user, limit=10**9)
        if departed:
            with open_writer(folder, lock_fd=held) as writer:
                gone = [(int(source), str(key)) for source, key in departed]
                generation = writer.publish([], gone, writer.model)
                writer.tidy()
                # Not only out of reach: out of the file.
                writer.shred()
            ledger.published(_BY_HAND, user, generation, [], departed)
        return len(departed)
    finally:
        os.close(held)


def _forget_given(folder: Path, kind: str) -> None:
    try:
        given.forget(folder, kind)
    except OSError as error:
        place = given.folder_of(folder, kind)
        raise CannotRunError(f"{place} could not be removed: {error}; mend that, then remove again") from None


def _take_lock(user: UserId, folder: Path) -> int:
    try:
        return lock.take(folder)
    except IndexBusy:
        said = f"a run is working on {user}; wait until it is done, or stop it, then try again"
        raise CannotRunError(said) from None
