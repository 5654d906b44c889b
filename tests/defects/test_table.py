"""The table of defects fits the code; `python -m tests.defects` puts them in."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from tests.defects.table import DEFECTS

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_a_defect_replaces_what_stands_in_the_code_once(defect):
    """Code that moves on takes its defect along."""
    source = files("streamq").joinpath(defect.file).read_text()
    assert source.count(defect.old) == 1
    assert defect.new != defect.old
    assert all((TESTS / test).exists() for test in defect.tests.split())


def test_there_are_at_least_25_and_each_has_a_name_of_its_own():
    """As many as the plan for the tests asks for."""
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS) >= 25
