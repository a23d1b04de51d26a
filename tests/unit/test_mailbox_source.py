"""Mailboxes: where mails begin and end, by which keys they are known for ever, and what of them is copied."""

from __future__ import annotations

import hashlib
import mailbox
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from engine.errors import SourceUnavailable
from engine.model import Kind, Listed
from engine.ports import FetchFailed, Source
from engine.reasons import Reason
from engine.sources import beneath
from engine.sources import mailbox as under_test
from engine.sources.mailbox import MaildirSource, MboxSource
from engine.sources.rules import Rules

DATED = b"From ann@mill.example Thu Feb 29 12:30:00 2024\n"


def mbox(path: Path, **rules: Any) -> MboxSource:
    """The file as a source."""
    return MboxSource(f"mbox:{path}", str(path), Rules(**rules))


def maildir(path: Path, **rules: Any) -> MaildirSource:
    """The folder as a source."""
    return MaildirSource(f"maildir:{path}", str(path), Rules(**rules))


def listed(source: Source) -> list[Listed]:
    """All items of a complete listing; no key comes twice."""
    items = [item for page in source.list("") for item in page]
    assert len({item.key for item in items}) == len(items)
    assert all(item.kind is Kind.MAIL for item in items)
    return items


def trouble(source: Source) -> SourceUnavailable:
    """How a listing ends that does not end well."""
    with pytest.raises(SourceUnavailable) as caught:
        list(source.list(""))
    return caught.value


def fetch(source: Source, item: Listed, target: Path) -> bytes:
    """The bytes that arrive, checked against what is said of them."""
    fetched = source.fetch(item.locator, target)
    data = target.read_bytes()
    assert (fetched.size_bytes, fetched.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert fetched.fingerprint == item.fingerprint
    target.unlink()
    return data


def contents(source: Source, target: Path) -> list[bytes]:
    """What arrives of every mail that is listed, in order."""
    return [fetch(source, item, target) for item in listed(source)]


def refused(source: Source, item: Listed, target: Path) -> Reason:
    """Why an item is not copied. Nothing is left of the attempt."""
    with pytest.raises(FetchFailed) as caught:
        source.fetch(item.locator, target)
    assert not target.exists()
    return caught.value.failure.reason


def written(*mails: bytes, separator: bytes = DATED) -> bytes:
    """An mbox file of these mails, quoted as mboxrd does it."""
    pieces = []
    for mail in mails:
        body = mail if mail.endswith(b"\n") or not mail else mail + b"\n"
        pieces.append(separator + re.sub(rb"(?m)^(>*From )", rb">\1", body) + b"\n")
    return b"".join(pieces)


def mail(name: str, text: str = "text") -> bytes:
    """A small mail with a Message-ID."""
    return f"Subject: {name}\nMessage-ID: <{name}@mill>\n\n{text}\n".encode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the mbox file is."""
    return tmp_path / "inbox"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a copy is to go."""
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def real_mails(corpus: Path) -> list[bytes]:
    """Mails as people and programs write them."""
    return [path.read_bytes() for path in sorted((corpus / "mail").glob("*.eml"))]


# --- where mails begin and end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("line_end", [b"", b"\r\n"])
def test_boundaries_are_those_of_pythons_mailbox(
    real_mails: list[bytes], file: Path, target: Path, line_end: bytes
) -> None:
    """Some hundred real mails: as many, in the same order, with the same bytes, quoted lines as they were written."""
    # One mail has its sender in "From  : ", as RFC 822 allowed; Python takes that for a separator.
    mails = [raw for raw in real_mails if not re.match(rb"From +:", raw)]
    oracle = mailbox.mbox(file)
    for raw in mails:
        oracle.add(raw.replace(b"\r\n", b"\n") if line_end else raw)
    oracle.close()
    oracle = mailbox.mbox(file)
    expected = [re.sub(rb"(?m)^>(>*From )", rb"\1", oracle.get_bytes(key)) for key in oracle.iterkeys()]
    assert len(expected) == len(mails) > 300
    if line_end:
        file.write_bytes(file.read_bytes().replace(b"\n", line_end))
        expected = [data.replace(b"\n", line_end) for data in expected]
    assert contents(mbox(file), target) == expected


_PIECES = (
    b"From ",
    b">",
    b">From x\n",
    b"\n",
    b"\n\n",
    b"\r\n",
    b"\r",
    b"x",
    b"Message-ID: <1>\n",
    b"From a 1:00\n",
    b" " * 400,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(_PIECES), max_size=12).map(b"".join), min_size=1, max_size=6),
    st.sampled_from([100, 641, 1 << 20]),
    st.sampled_from([DATED, b"From -\n", b"From MAILER-DAEMON Fri Jul  8 12:08:34 2011 +0200\r\n"]),
)
@example([b"", b""], 100, DATED)
@example([b"\n", b"\n\n"], 100, DATED)
@example([b"\r\n", b"x\r"], 100, DATED)
def test_what_was_written_comes_back(
    tmp_path_factory: pytest.TempPathFactory, mails: list[bytes], block: int, separator: bytes
) -> None:
    """Mails of anything, put into an mbox by the rules of mboxrd, are found as they were, however blocks fall."""
    folder = tmp_path_factory.mktemp("mbox", numbered=True)
    (folder / "file").write_bytes(written(*mails, separator=separator))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beneath, "BLOCK_BYTES", block)
        patch.setattr(under_test, "BLOCK_BYTES", block)
        source = mbox(folder / "file")
        expected = [data if data.endswith(b"\n") or not data else data + b"\n" for data in mails]
        assert contents(source, folder / "copy") == expected


@pytest.mark.parametrize("shift", [*range(-60, 8), -519, -520, -521, -639, -640, -641])
def test_a_separator_across_blocks_is_seen(file: Path, target: Path, shift: int) -> None:
    """Wherever the end of the first mebibyte falls in it, and without a Message-ID to help."""
    first = b"Subject: long\n\n" + b"x" * ((1 << 20) - len(DATED) - 16 + shift) + b"\n"
    file.write_bytes(written(first, b"Subject: short\n\ntext\n"))
    assert contents(mbox(file), target) == [first, b"Subject: short\n\ntext\n"]


def test_a_line_that_only_begins_like_a_separator_is_text(file: Path, target: Path) -> None:
    """Without a blank line before it, or without a time of day where the others have one."""
    first = b"Subject: a\n\nFrom here on\nFrom there at 12:00\n\nFrom now on, no date.\n\nFrom here\ntext\n"
    file.write_bytes(DATED + first + b"\n" + DATED + b"Subject: b\n\n\n")
    assert contents(mbox(file), target) == [first, b"Subject: b\n\n"]


def test_an_undated_separator_among_dated_ones_is_seen(file: Path, target: Path) -> None:
    """Programs that are given a mail with a "From " line of its own keep it as it is."""
    second = b"From ann@mill\r\nSubject: b\r\n\r\ntext\r\n\r\n"
    file.write_bytes(written(mail("a")) + second + b"From bob@mill\nSubject: c\n\n" + DATED + mail("d"))
    assert [item.path for item in listed(mbox(file))] == ["inbox#1", "inbox#2", "inbox#3", "inbox#4"]
    assert contents(mbox(file), target)[1:3] == [b"Subject: b\r\n\r\ntext\r\n", b"Subject: c\n"]


def test_quoted_lines_are_copied_as_they_were_written(file: Path, target: Path) -> None:
    """One ">" is taken off, by mboxo and mboxrd alike; a quoted line elsewhere keeps its own."""
    file.write_bytes(DATED + b"Subject: a\n\n>From me\n>>From you\n> From\n x>From\n>Fromage\n")
    assert contents(mbox(file), target) == [b"Subject: a\n\nFrom me\n>From you\n> From\n x>From\n>Fromage\n"]


def test_a_quoted_line_in_a_line_longer_than_a_block(file: Path, target: Path) -> None:
    """Only the beginning of a line is one: not what happens to follow the end of a block."""
    text = b"x" * ((1 << 20) - 20) + b">From " * 1_000_000 + b"\nFrom me\n"
    file.write_bytes(written(b"Subject: a\n\n" + text))
    assert contents(mbox(file), target) == [b"Subject: a\n\n" + text]


@pytest.mark.parametrize("blank", [b"", b"\n\n", b"\r\n" * 3, b"\n" * 3_000_000])
def test_an_empty_mailbox_is_complete_and_empty(file: Path, blank: bytes) -> None:
    """A mailbox of which everything was deleted is no error, or its mails would never go from the index."""
    file.write_bytes(blank)
    source = mbox(file)
    assert listed(source) == []
    assert source.unchanged_since(source.cursor())


@pytest.mark.parametrize(
    "data", [b"Subject: a mail\n\ntext", b"x", b"\0" * 5000, b"PK\x03\x04", b"from a\n", b">From a\n"]
)
def test_a_file_that_is_no_mbox_is_refused(file: Path, data: bytes) -> None:
    """It does not begin with a From line: nothing is listed, as something or as nothing."""
    file.write_bytes(data)
    error = trouble(mbox(file))
    assert error.reason == Reason.SOURCE_UNREADABLE
    assert "does not begin with a line 'From ...'; check the path" in str(error)


def test_what_is_no_file_is_refused(tmp_path: Path, file: Path) -> None:
    """A folder, a named pipe, nothing: each with its reason, and nobody waits for a writer."""
    assert trouble(mbox(tmp_path)).reason == Reason.SOURCE_UNREADABLE
    os.mkfifo(file)
    assert trouble(mbox(file)).reason == Reason.SOURCE_UNREADABLE
    assert trouble(mbox(tmp_path / "absent")).reason == Reason.SOURCE_MISSING


def test_a_mailbox_may_be_a_link(tmp_path: Path, file: Path, target: Path) -> None:
    """The source itself is named by a person, so its link is followed."""
    file.write_bytes(written(mail("a")))
    (tmp_path / "link").symlink_to(file)
    assert contents(mbox(tmp_path / "link"), target) == [mail("a")]


# --- keys and fingerprints -------------------------------------------------------------------------------------------


def keys(path: Path) -> dict[str, str]:
    """The fingerprint of every mail by its key."""
    return {item.key: item.fingerprint for item in listed(mbox(path))}


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_appended_mail_leaves_the_others_as_they_were(file: Path, line_end: bytes) -> None:
    """The blank line that comes with the next mail, or was there before, makes no change."""
    mails = [mail("a"), b"Subject: no id\n\ntext\n", mail("b"), b"\n", b""]
    known: dict[str, str] = {}
    for count in range(1, len(mails) + 1):
        data = written(*mails[:count]).replace(b"\n", line_end)
        for end in (data, data.removesuffix(line_end)):
            file.write_bytes(end)
            now = keys(file)
            assert known.items() <= now.items()
            assert len(now) == count
        known = now


def test_mail_deleted_in_the_middle_leaves_the_others_as_they_were(file: Path) -> None:
    """Keys say what a mail is, not where it stands."""
    mails = [mail("a"), b"Subject: no id\n\none\n", mail("b"), b"Subject: no id\n\ntwo\n", mail("c")]
    file.write_bytes(written(*mails))
    whole = keys(file)
    for gone in range(len(mails)):
        file.write_bytes(written(*mails[:gone], *mails[gone + 1 :]))
        assert keys(file).items() <= whole.items()


def test_a_changed_mail_keeps_its_key(file: Path) -> None:
    """Mail programs write "Status: RO" into a mail that was read: the same mail, with other bytes."""
    file.write_bytes(written(mail("a")))
    ((key, before),) = keys(file).items()
    file.write_bytes(written(b"Status: RO\n" + mail("a")))
    ((same_key, after),) = keys(file).items()
    assert key == same_key
    assert before != after


def test_copies_of_a_mail_have_keys_of_their_own(file: Path, target: Path) -> None:
    """The same Message-ID twice, the same mail without one twice: each is an item."""
    mails = [mail("a", "one"), mail("a", "two"), b"same\n", b"same\n"]
    file.write_bytes(written(*mails))
    found = [item.key for item in listed(mbox(file))]
    assert found[1] == found[0] + "-2"
    assert found[3] == found[2] + "-2"
    assert contents(mbox(file), target) == mails


@pytest.mark.parametrize(
    "header",
    [
        b"message-id: <a@b>",
        b"MESSAGE-ID:<a@b>",
        b"Message-Id:  <a@b> ",
        b"Message-ID:\n <a@b>",
        b"Message-ID: \r\n\t<a@b>",
    ],
)
def test_a_message_id_is_found_however_it_is_written(file: Path, header: bytes) -> None:
    """Case, blanks and folding aside it is the same mail."""
    plain = b"Subject: x\nMessage-ID: <a@b>\n\ntext\n"
    file.write_bytes(written(plain))
    (key,) = keys(file)
    file.write_bytes(written(b"Subject: x\n" + header + b"\n\ntext\n"))
    assert set(keys(file)) == {key}


def test_a_message_id_counts_only_in_the_header(file: Path) -> None:
    """A mail that quotes another one's header in its text is not that one."""
    file.write_bytes(written(b"Subject: x\n\nMessage-ID: <a@b>\n", b"Subject: y\n\nMessage-ID: <a@b>\n"))
    assert not any(key.endswith("-2") for key in keys(file))


def test_mails_with_an_empty_message_id_do_not_share_one(file: Path) -> None:
    """Their keys would follow their order: a deletion would shift all that come after."""
    mails = [f"Message-ID: \nSubject: {n}\n\n{n}\n".encode() for n in range(3)]
    file.write_bytes(written(*mails))
    whole = keys(file)
    file.write_bytes(written(*mails[1:]))
    assert len(keys(file)) == 2
    assert keys(file).items() <= whole.items()


@pytest.mark.parametrize(
    ("separator", "modified"),
    [
        (b"From a@b Thu Feb 29 12:30:05 2024", 1709209805),
        (b"From a@b Thu Feb 29 12:30 2024", 1709209800),
        (b"From 1792@xxx Thu Feb 29 12:30:05 +0000 2024", 1709209805),
        (b"From a@b Thu Feb 29 12:30:05 +0200 2024", 1709209805),
        (b"From a@b Thu Feb 29 12:30:05 MET DST 2024", 1709209805),
        (b"From a@b Thu Feb 29 12:30:05 2024 +0200", 1709209805),
        (b"From a@b Thu Feb  1 00:00:00 2024", 1706745600),
        (b"From a@b Fri Feb 30 12:30:05 2024", 1709296205),
        (b"From -", None),
        (b"From a@b Thu Feb 29 12:30:05 0000", None),
        (b"From a@b sometime 12:30", None),
    ],
)
def test_the_date_of_the_separator_is_taken(file: Path, separator: bytes, modified: float | None) -> None:
    """As asctime writes it, and with a zone before or after the year; without one the file's own time has to do."""
    file.write_bytes(written(mail("a"), separator=separator + b"\n"))
    os.utime(file, (1_000_000_000, 1_000_000_000))
    (item,) = listed(mbox(file))
    assert item.modified == (modified or 1_000_000_000)


def test_rules_skip_with_a_reason(file: Path) -> None:
    """Too large and too old mails are listed as such."""
    old = b"From a Thu Feb 29 12:30:00 1996\n" + mail("old") + b"\n"
    file.write_bytes(written(mail("a"), mail("big", "x" * 500)) + old)
    found = [(item.path, item.skip) for item in listed(mbox(file, max_size_bytes=400, since=1e9))]
    assert found == [("inbox#1", None), ("inbox#2", Reason.TOO_LARGE), ("inbox#3", Reason.TOO_OLD)]


# --- what changes meanwhile ------------------------------------------------------------------------------------------


def test_an_unchanged_mailbox_is_known_without_reading(file: Path) -> None:
    """Size, times and inode: any change, and a file that is gone, means to look."""
    file.write_bytes(written(mail("a")))
    source = mbox(file)
    assert not source.unchanged_since("")
    listed(source)
    cursor = source.cursor()
    assert mbox(file).unchanged_since(cursor)
    with file.open("ab") as more:
        more.write(written(mail("b")))
    assert not mbox(file).unchanged_since(cursor)
    file.unlink()
    assert not mbox(file).unchanged_since(cursor)


@pytest.fixture
def half_listed(file: Path) -> Iterator[tuple[MboxSource, Iterator[Any]]]:
    """A mailbox of 1,500 mails of which the first page has been listed."""
    file.write_bytes(written(*(mail(str(number), "x" * 2000) for number in range(1500))))
    source = mbox(file)
    pages = source.list("")
    assert len(next(pages)) == 1000
    yield source, pages
    pages.close()  # type: ignore[attr-defined]


def test_mail_that_arrives_during_the_listing_is_for_the_next(
    file: Path, half_listed: tuple[MboxSource, Iterator[Any]]
) -> None:
    """What was there is listed completely; the cursor says that there is more to see."""
    source, pages = half_listed
    with file.open("ab") as more:
        more.write(written(mail("new")))
    assert [len(page) for page in pages] == [500]
    assert source.cursor()
    assert not source.unchanged_since(source.cursor())


@pytest.mark.parametrize("change", ["shrinks", "is rewritten"])
def test_a_mailbox_rewritten_during_the_listing_is_not_complete(
    file: Path, half_listed: tuple[MboxSource, Iterator[Any]], change: str
) -> None:
    """Half of the old state and half of the new one say nothing of what is gone."""
    source, pages = half_listed
    if change == "shrinks":
        os.truncate(file, 100_000)
    else:
        os.utime(file, (1, 1))
    with pytest.raises(SourceUnavailable) as caught:
        list(pages)
    assert caught.value.reason == Reason.SOURCE_INCOMPLETE
    assert source.cursor() == ""


def test_a_mailbox_rewritten_before_the_copy_is_noticed(file: Path, target: Path) -> None:
    """The bytes at the old place are another mail, or half of one, or nothing: never copied as the one listed."""
    file.write_bytes(written(mail("a"), mail("b"), mail("c")))
    source = mbox(file)
    _, second, last = listed(source)
    file.write_bytes(written(mail("b"), mail("c")))
    assert refused(source, second, target) is Reason.CHANGED_WHILE_READING
    assert refused(source, last, target) is Reason.CHANGED_WHILE_READING
    file.unlink()
    assert refused(source, second, target) is Reason.VANISHED
    os.mkfifo(file)
    assert refused(source, second, target) is Reason.NOT_A_FILE


def test_a_disk_that_cannot_be_read_is_an_unreadable_source(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the device ends the listing, and never looks like the end of the mailbox."""
    file.write_bytes(written(mail("a")))

    def broken(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    assert trouble(mbox(file)).reason == Reason.SOURCE_UNREADABLE


# --- maildir ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def box(tmp_path: Path) -> mailbox.Maildir:
    """An empty maildir."""
    return mailbox.Maildir(tmp_path / "maildir", create=True)


@pytest.fixture
def place(box: mailbox.Maildir, tmp_path: Path) -> Path:
    """Where it is."""
    return tmp_path / "maildir"


def test_mails_of_all_folders_are_found(
    box: mailbox.Maildir, place: Path, target: Path, real_mails: list[bytes]
) -> None:
    """In `new`, in `cur` and in the folders beside, as Python's own maildir knows them, byte by byte."""
    expected = {}
    for number, raw in enumerate(real_mails[:40]):
        folder = box if number % 3 else box.add_folder("Sent")
        message = mailbox.MaildirMessage(raw)
        message.set_subdir("cur" if number % 2 else "new")
        key = folder.add(message)
        expected[key if number % 3 else f".Sent/{key}"] = folder.get_bytes(key)
    (place / "tmp" / "half").write_bytes(b"still being delivered")
    source = maildir(place)
    found = {item.key: fetch(source, item, target) for item in listed(source)}
    assert found == expected


def test_reading_and_flagging_a_mail_is_no_change(box: mailbox.Maildir, place: Path, target: Path) -> None:
    """Flags are part of the name and move a mail from `new` to `cur`: key and fingerprint stay, the bytes are found."""
    name = box.add(mail("a"))
    source = maildir(place)
    (before,) = listed(source)
    message = box[name]
    message.set_subdir("cur")
    message.set_flags("RS")
    os.rename(place / "new" / name, place / "cur" / f"{name}:2,RS")
    (after,) = listed(source)
    assert (after.key, after.fingerprint) == (before.key, before.fingerprint)
    assert fetch(source, before, target) == mail("a")
    os.rename(place / "cur" / f"{name}:2,RS", place / "cur" / f"{name}:2,S")
    assert fetch(source, after, target) == mail("a")
    os.unlink(place / "cur" / f"{name}:2,S")
    assert refused(source, after, target) is Reason.VANISHED


def test_a_mail_flagged_while_its_folder_is_listed_is_not_missed(place: Path, box: mailbox.Maildir) -> None:
    """Its old name is gone and its new one not yet read: it must not be taken for removed."""
    names = {f"{number}.mill" for number in range(1500)}
    for name in names:
        (place / "cur" / f"{name}:2,").touch()
    pages = maildir(place).list("")
    found = {item.key for item in next(pages)}
    assert len(found) == 1000
    for name in names - found:
        os.rename(place / "cur" / f"{name}:2,", place / "cur" / f"{name}:2,S")
    rest = [item.key for page in pages for item in page]
    assert len(rest) == 500
    assert {*found, *rest} == names


def test_a_mail_read_while_its_folder_is_listed_is_not_missed(place: Path, box: mailbox.Maildir) -> None:
    """It moves from `new` to `cur`, so `new` has to be looked at first."""
    names = {f"{number}.mill" for number in range(1500)}
    for name in names:
        (place / "new" / name).touch()
    pages = maildir(place).list("")
    found = {item.key for item in next(pages)}
    for name in names - found:
        os.rename(place / "new" / name, place / "cur" / f"{name}:2,S")
    assert {*found, *(item.key for page in pages for item in page)} == names


def test_a_mail_removed_while_its_folder_is_listed_is_nothing(place: Path, box: mailbox.Maildir) -> None:
    """The listing is complete without it."""
    names = {f"{number}.mill" for number in range(1500)}
    for name in names:
        (place / "cur" / name).touch()
    pages = maildir(place).list("")
    found = {item.key for item in next(pages)}
    for name in names - found:
        (place / "cur" / name).unlink()
    assert sum(len(page) for page in pages) <= 500


def test_a_folder_that_never_keeps_still_is_not_complete(
    place: Path, box: mailbox.Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be caught in several looks may still be there."""
    (place / "cur" / "mail").touch()

    class Slippery:
        name = "mail"

        def stat(self, **_: object) -> os.stat_result:
            raise FileNotFoundError(2, "No such file or directory")

        def is_dir(self, **_: object) -> bool:
            return False

    class Entries(list[Slippery]):
        def __enter__(self) -> Entries:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", lambda _: Entries([Slippery()]))
    error = trouble(maildir(place))
    assert error.reason == Reason.SOURCE_INCOMPLETE
    assert "did not keep still" in str(error)


def test_a_mail_in_new_and_cur_is_one(place: Path, box: mailbox.Maildir) -> None:
    """It was moved between the two looks."""
    (place / "new" / "a").touch()
    (place / "cur" / "a:2,S").touch()
    assert [item.key for item in listed(maildir(place))] == ["a"]


def test_what_is_no_maildir_is_refused(tmp_path: Path) -> None:
    """Missing, a file, or a folder without `cur` and `new`: nothing is listed, as something or as nothing."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert trouble(maildir(tmp_path / "absent")).reason == Reason.SOURCE_MISSING
    assert trouble(maildir(tmp_path / "file")).reason == Reason.SOURCE_UNREADABLE
    error = trouble(maildir(tmp_path / "folder"))
    assert error.reason == Reason.SOURCE_UNREADABLE
    assert "it has neither `cur` nor `new`; name the folder that holds them" in str(error)


def test_an_empty_maildir_is_complete_and_empty(place: Path, box: mailbox.Maildir) -> None:
    """It is never known to be unchanged without a look."""
    source = maildir(place)
    assert listed(source) == []
    assert not source.unchanged_since(source.cursor())


def test_links_in_a_maildir_lead_nowhere(place: Path, box: mailbox.Maildir, target: Path, tmp_path: Path) -> None:
    """A mail that is a link is skipped; a folder that is one makes the listing incomplete."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_bytes(b"secret")
    (place / "cur" / "link").symlink_to(tmp_path / "secret" / "file")
    os.mkfifo(place / "cur" / "pipe")
    source = maildir(place)
    items = {item.key: item for item in listed(source)}
    assert {key: item.skip for key, item in items.items()} == {"link": Reason.SYMBOLIC_LINK, "pipe": Reason.NOT_A_FILE}
    assert refused(source, items["link"], target) is Reason.SYMBOLIC_LINK
    (place / "new").rmdir()
    (place / "new").symlink_to(tmp_path / "secret")
    assert trouble(source).reason == Reason.SOURCE_INCOMPLETE


def test_rules_apply_to_a_maildir(place: Path, box: mailbox.Maildir, target: Path) -> None:
    """Too large and too old; and one that grew meanwhile is not copied."""
    (place / "cur" / "big").write_bytes(b"x" * 11)
    (place / "cur" / "fits").write_bytes(b"x" * 10)
    (place / "cur" / "old").touch()
    os.utime(place / "cur" / "old", (1, 1))
    source = maildir(place, max_size_bytes=10, since=1e9)
    items = {item.key: item for item in listed(source)}
    assert {key: item.skip for key, item in items.items()} == {
        "big": Reason.TOO_LARGE, "fits": None, "old": Reason.TOO_OLD,
    }  # fmt: skip
    (place / "cur" / "fits").write_bytes(b"x" * 11)
    assert refused(source, items["fits"], target) is Reason.TOO_LARGE
