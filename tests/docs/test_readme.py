"""The README says what is so: every command, exit code and script that it names exists, and none is left out."""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import cli, errors
from engine.cli import make_parser

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def _commands(parser: argparse.ArgumentParser, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                inner = list(_commands(child, (*prefix, name)))
                yield from inner or [(*prefix, name)]


def _documented() -> str:
    return "\n".join(line for line in README.splitlines() if line.startswith("| `nightmill"))


def test_every_command_is_documented() -> None:
    """Each command, and each command of a group, stands in the table of commands."""
    table = _documented()
    for words in _commands(make_parser()):
        assert f"nightmill {' '.join(words)}" in table


def test_every_documented_command_exists() -> None:
    """No row of the table names a command that the program does not know."""
    known = {words[0] for words in _commands(make_parser())}
    assert set(re.findall(r"nightmill ([a-z]+)\b", _documented())) <= known


def _examples() -> list[str]:
    blocks = re.findall(r"```\n(.*?)```", README, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("nightmill ")]


@pytest.mark.parametrize("line", _examples())
def test_examples_are_words_that_the_program_takes(line: str) -> None:
    """Every example line of the README is accepted by the parser."""
    words = shlex.split(line, comments=True)[1:]
    assert make_parser().parse_args(words).call is not None


def test_scripts_exist_and_can_be_run() -> None:
    """Each script that the README or CONTRIBUTING name is there, and executable."""
    text = README + (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    names = set(re.findall(r"scripts/(demo|test|check|bench)\b", text))
    assert names == {"demo", "test", "check", "bench"}
    for name in names:
        assert os.access(REPOSITORY / "scripts" / name, os.X_OK)
    for bench in re.findall(r"scripts/bench (\w+)", README):
        assert (REPOSITORY / "scripts" / "benches" / f"{bench}.py").is_file()


def test_exit_codes_are_those_of_the_program() -> None:
    """README and the head of cli.py list the same exit codes, and each error's own code is among them."""
    listed = re.search(r"\*\*Exit codes\*\*: (.*?)\n\n", README, flags=re.DOTALL)
    assert listed is not None
    codes = {int(code) for code in re.findall(r"(?:^|· )(\d+) ", listed.group(1).replace("\n", " "))}
    assert codes == {0, 1, 2, 3, 4, 5, 130}
    said = {int(code) for code in re.findall(r"(?:^    |· )(\d+) ", cli.__doc__ or "", flags=re.MULTILINE)}
    assert said == codes
    own = {
        value.exit_code for value in vars(errors).values() if isinstance(value, type) and hasattr(value, "exit_code")
    }
    assert own <= codes


def test_the_design_names_files_that_exist() -> None:
    """The tour of DESIGN.md points at files and folders that are there."""
    design = (REPOSITORY / "DESIGN.md").read_text(encoding="utf-8")
    tour = design[design.index("## Tour") : design.index("## The way of one item")]
    named = [
        word
        for row in tour.splitlines()
        for word in re.findall(r"`([\w/]+(?:\.py|/))`", row.split("|")[1] if "|" in row else "")
    ]
    assert len(named) > 20
    folder = "engine"
    for name in named:
        place = REPOSITORY / name if "/" in name else REPOSITORY / folder / name
        assert place.exists(), name
