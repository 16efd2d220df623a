"""Every row of docs/wrong_input.md is provoked, and the file is what the rows say."""

from __future__ import annotations

import pytest

from .wrong_input.case import CASES, Case
from .wrong_input.document import FILE, text

ROWS = [case for cases in CASES.values() for case in cases]


def test_table_of_wrong_input_is_long_and_says_nothing_twice():
    assert len(ROWS) >= 60
    assert len({case.given for case in ROWS}) == len(ROWS)


@pytest.mark.parametrize('case', ROWS, ids=lambda case: case.given)
def test_wrong_input_gets_what_the_document_says(case: Case, tmp_path):
    case.check(tmp_path)


def test_document_of_wrong_input_is_that_of_the_table():
    """If this fails: ``python -m tests.wrong_input.document``."""
    assert FILE.read_text(encoding='utf-8') == text()
