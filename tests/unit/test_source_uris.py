"""The words for a source: what they mean, that they can be written down and read again, and what is said of a slip."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.errors import UsageError
from engine.sources.calendar import CalendarSource
from engine.sources.folder import FolderSource
from engine.sources.mailbox import MaildirSource, MboxSource
from engine.sources.rules import DEFAULT_MAX_SIZE_BYTES, Rules
from engine.sources.uri import SourceUri, open_source, parse_uri


@pytest.mark.parametrize(
    ("uri", "kind"),
    [("folder:/a", FolderSource), ("mbox:/a", MboxSource), ("maildir:/a", MaildirSource), ("ics:/a", CalendarSource)],
)
def test_each_kind_opens_without_a_look_at_the_disk(uri: str, kind: type) -> None:
    """What is not there is said when it is listed, by the source itself."""
    source = open_source(uri)
    assert type(source) is kind
    assert source.uri == uri


@pytest.mark.parametrize(
    ("uri", "path", "rules"),
    [
        ("folder:/a/b", "/a/b", Rules()),
        ("folder:/a/../b//c/", "/b/c", Rules()),
        ("folder:/what?", "/what?", Rules()),
        ("folder:/a:b&c=d#e%20f", "/a:b&c=d#e%20f", Rules()),
        ("folder:/a?exclude=*.tmp", "/a", Rules(exclude=("*.tmp",))),
        ("folder:/a?exclude=a%26b&exclude=%3F%FF", "/a", Rules(exclude=("a&b", "?\udcff"))),
        ("folder:/a?exclude=x=y", "/a", Rules(exclude=("x=y",))),
        ("folder:/a?b?max_size=1KB", "/a?b", Rules(max_size_bytes=1000)),
        ("mbox:/a?since=1970-01-02&max_size=2MiB", "/a", Rules(since=86400.0, max_size_bytes=2 << 20)),
        ("maildir:/a?since=2024-02-29&", "/a", Rules(since=1709164800.0)),
        ("ics:/a?exclude=b&since=1969-12-31", "/a", Rules(exclude=("b",), since=-86400.0)),
    ],
)
def test_a_source_means_what_it_says(uri: str, path: str, rules: Rules) -> None:
    """The path literally, question marks included; parameters after the last mark that begins one."""
    parsed = parse_uri(uri)
    assert (parsed.path, parsed.rules) == (path, rules)


def test_paths_are_completed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`~` and relative paths are made absolute, or a nightly run elsewhere would look elsewhere."""
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.chdir(tmp_path)
    assert parse_uri("mbox:~/mail").path == "/home/ann/mail"
    assert parse_uri("folder:papers").path == str(tmp_path / "papers")
    assert parse_uri("folder:.").path == str(tmp_path)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "source '': it does not say what kind of source it is; write one of folder:PATH, mbox:PATH"),
        ("/home/ann", "source '/home/ann': it does not say what kind of source it is; write one of folder:PATH, "),
        ("imap:ann", "source 'imap:ann': 'imap' is not a kind of source; write one of folder:PATH, mbox:PATH, "),
        ("Folder:/a", "'Folder' is not a kind of source"),
        ("folder:", "source 'folder:': the path is missing; write folder:PATH"),
        ("ics:?since=2024-01-01", "the path is missing; write ics:PATH"),
        ("folder:/a?since=yesterday", "since=yesterday is not a date; write it as since=2024-01-31"),
        ("folder:/a?since=2024-02-30", "since=2024-02-30 is not a date"),
        ("folder:/a?since=", "since= is not a date"),
        ("folder:/a?max_size=big", "max_size=big is not a size; write it as max_size=50MB"),
        ("folder:/a?max_size=0", "max_size=0 is not a size"),
        ("folder:/a?max_size=-1", "max_size=-1 is not a size"),
        ("folder:/a?max_size=" + "9" * 400, "is not a size; write it as max_size=50MB"),
        ("folder:/a?exclude=", "exclude is empty; write a pattern such as exclude=*.tmp"),
        ("mbox:/a?exclude=*.tmp", "exclude compares file names, a mbox has none; leave it out"),
        ("maildir:/a?exclude=*.tmp", "exclude compares file names, a maildir has none; leave it out"),
        ("folder:/a?since=2024-01-01&size=1", "there is no parameter 'size'; known are since, exclude, max_size"),
        ("folder:/absent?maxsize=1", "there is no parameter 'maxsize'; known are since, exclude, max_size"),
        ("folder:/a?exclude=x&y", "there is no parameter 'y'"),
        ("folder:/a\0b", "the path holds a NUL character; no file can have that name"),
        ("folder:~\0?x=y", "the path holds a NUL character; no file can have that name"),
        ("folder:/\udcff", "the path is not UTF-8 and cannot be stored; make a symbolic link to it with another name"),
    ],
)
def test_a_slip_is_said_with_the_way_out(uri: str, message: str) -> None:
    """The thing, the reason and what to write instead, in one line that a terminal can show."""
    with pytest.raises(UsageError) as caught:
        parse_uri(uri)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_folder_may_really_be_called_like_that(tmp_path: Path) -> None:
    """What looks like a misspelt parameter is taken for a name where there is a folder of that name."""
    place = tmp_path / "a?maxsize=1"
    with pytest.raises(UsageError):
        parse_uri(f"folder:{place}")
    place.mkdir()
    assert parse_uri(f"folder:{place}").path == str(place)


def test_what_was_written_down_does_not_depend_on_the_disk(tmp_path: Path) -> None:
    """A stored source whose folder is gone is a missing source, not a slip of the pen."""
    place = tmp_path / "a?maxsize=1"
    place.mkdir()
    stored = str(parse_uri(f"folder:{place}"))
    place.rmdir()
    assert parse_uri(stored).path == str(place)
    assert str(parse_uri(stored)) == stored


_paths = st.text(st.sampled_from("ab/.?&=% :~ü\n") | st.characters(exclude_categories=["Cs"]), min_size=1)
_awkward = st.sampled_from(["/a?since=b", "/a?exclude=b/c", "/?max_size=1?x=", "/a?b=c", "/a?since=2024-01-01"])
_rules = st.builds(
    Rules,
    since=st.none() | st.dates().map(lambda day: float((day.toordinal() - 719163) * 86400)),
    exclude=st.lists(
        st.text(st.sampled_from("ab*?[]!&=%#+ /\udcff") | st.characters(exclude_categories=["Cs"]), min_size=1)
    ).map(tuple),
    max_size_bytes=st.integers(1, 2**63 - 1) | st.just(DEFAULT_MAX_SIZE_BYTES),
)


@given(_paths | _awkward, _rules)
def test_what_is_written_down_is_read_as_it_was_meant(path: str, rules: Rules) -> None:
    """`str` of any source parses to the same source: the ledger keeps nothing else of it."""
    path = os.path.abspath("/" + path.replace("\0", ""))
    source = SourceUri(scheme="folder", path=path, rules=rules)
    assert parse_uri(str(source)) == source


@given(st.text() | st.text(st.sampled_from("folder:mboxics/?&=%sinceexcludemax_size~\0\udcff\ud8002024-01")))
@example("folder:~a\0b?x=y")
@example("folder:~\ud800?x=y")
@example("folder:/a?exclude=\ud800")
def test_no_text_is_more_than_a_slip(uri: str) -> None:
    """Anything at all is a source that can be written down, or a mistake that is explained."""
    for text in (uri, f"folder:{uri}", f"ics:/a?{uri}"):
        try:
            parsed = parse_uri(text)
        except UsageError as error:
            str(error).encode()
        else:
            str(parsed).encode()
            assert parse_uri(str(parsed)) == parsed
