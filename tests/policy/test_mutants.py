"""The table of mutants (scripts/check_mutants) fits the policy as it is; whether each is noticed takes minutes."""

from __future__ import annotations

import ast

import pytest

from scripts.mutants.table import MUTANTS, Mutant, apply
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies(mutant: Mutant) -> None:
    """Its text is found exactly once, what comes out is another program, and still one."""
    text = (REPOSITORY / "engine" / "policy" / mutant.file).read_text()
    assert ast.dump(ast.parse(apply(mutant, text))) != ast.dump(ast.parse(text))
