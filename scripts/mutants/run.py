"""Break the scheduler's policy in every way of the table, one at a time, and see that its tests notice.

Each mutant lives in a copy of the tree of its own, and the tests of the policy run there with a fixed seed until the
first failure. Exit code 1 when a mutant survives, when one does not apply any more, or when the unbroken copy fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts.mutants.table import MUTANTS, Mutant, apply

REPOSITORY = Path(__file__).resolve().parents[2]
#: In this order, the oracle last: it notices nearly everything, and says least about what is broken.
TESTS = ("tokens", "admission", "pressure", "book", "words", "fairness", "oracle")
#: The tests take some ten seconds; a mutant that makes them go round for ever has been noticed as well.
LONGEST_SECONDS = 120
#: Two at a time: the size of the machines that this runs on.
AT_A_TIME = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the tests said of one copy; `by`: the first that failed."""

    passed: bool
    by: str
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="only mutants whose name contains one of these words")
    parser.add_argument("--list", action="store_true", help="say what each breaks, and run nothing")
    parser.add_argument("--without-oracle", action="store_true", help="only the tests of single properties")
    given = parser.parse_args()
    wanted = [one for one in MUTANTS if not given.names or any(word in one.name for word in given.names)]
    if given.list:
        for one in wanted:
            print(f"{one.name:42} {one.breaks}")
        return 0
    try:
        texts = [mutated(one) for one in wanted]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    tests = [name for name in TESTS if not (given.without_oracle and name == "oracle")]
    started = time.monotonic()
    whole = try_copy(None, "", tests)
    if not whole.passed:
        print(f"the unbroken copy fails: {whole.by}", file=sys.stderr)
        return 1
    print(f"{'(unbroken)':42} passes in {whole.seconds:.0f} s", flush=True)
    survivors = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        outcomes = pool.map(try_copy, wanted, texts, [tests] * len(wanted))
        for mutant, outcome in zip(wanted, outcomes, strict=True):
            print(f"{mutant.name:42} {'SURVIVES' if outcome.passed else outcome.by}", flush=True)
            if outcome.passed:
                survivors.append(mutant)
    print(f"{len(wanted) - len(survivors)} of {len(wanted)} noticed in {time.monotonic() - started:.0f} s")
    for mutant in survivors:
        print(f"not noticed: {mutant.name}: {mutant.breaks}", file=sys.stderr)
    return 1 if survivors else 0


def mutated(mutant: Mutant) -> str:
    """The text of the mutant's file. Raises ValueError when it does not apply."""
    return apply(mutant, (REPOSITORY / "engine" / "policy" / mutant.file).read_text())


def try_copy(mutant: Mutant | None, text: str, tests: list[str]) -> Outcome:
    """Run the tests in a copy of the tree, mutated or not."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="nightmill-mutant-") as place:
        copy = Path(place)
        for name in ("engine", "tests"):
            shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
        shutil.copy(REPOSITORY / "pyproject.toml", copy)
        if mutant is not None:
            (copy / "engine" / "policy" / mutant.file).write_text(text)
        arguments = ["-x", "-q", "--tb=no", "--hypothesis-seed=0", *(f"tests/policy/test_{name}.py" for name in tests)]
        try:
            ran = subprocess.run(
                [sys.executable, "-m", "pytest", *arguments],
                cwd=copy,
                env={**os.environ, "PYTHONPATH": place, "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                timeout=LONGEST_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return Outcome(passed=False, by="did not end", seconds=time.monotonic() - started)
    failed = re.search(r"^(?:FAILED|ERROR) tests/policy/(.+?)(?: - .*)?$", ran.stdout, re.MULTILINE)
    by = failed[1] if failed else (ran.stdout + ran.stderr)[-500:]
    if ran.returncode not in (0, 1):
        # A mutant that cannot even be imported proves nothing.
        raise SystemExit(f"{mutant.name if mutant else 'the unbroken copy'}: the tests could not run: {by}")
    return Outcome(passed=ran.returncode == 0, by=by, seconds=time.monotonic() - started)


if __name__ == "__main__":
    sys.exit(main())
