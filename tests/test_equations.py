"""docs/equations.md names functions that exist, by the equations that their docstrings name."""

from __future__ import annotations

import importlib
import re
from collections import defaultdict

import pytest


def numbers_in(text):
    """Equations that a text names: ``Eq. 4``, ``Eqs. 4 and 7``."""
    lists = re.findall(r'Eqs?\.\s+(\d+(?:(?:,|\s+and)\s+\d+)*)', text)
    return {int(number) for found in lists for number in re.findall(r'\d+', found)}


def named(name):
    """What a dotted name stands for."""
    parts = name.split('.')
    for length in range(len(parts) - 1, 0, -1):
        try:
            found = importlib.import_module('.'.join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f'{name} is no name of the package')


@pytest.fixture(scope='module')
def page(repository):
    return (repository / 'docs/equations.md').read_text()


def test_every_function_that_the_page_names_exists(page):
    names = re.findall(r'`(cdra_mm\.[\w.]+)`', page)
    assert len(names) >= 15
    assert all(callable(named(name)) for name in names)


def test_equations_of_the_page_are_those_of_the_docstrings(page):
    given = defaultdict(set)
    for row in re.findall(r'^\| (?:Eq.*|)\|.*$', page, re.MULTILINE):
        equation, *_, function = (cell.strip() for cell in row.strip('|').split('|'))
        given[function.strip('`')] |= numbers_in(equation)
    assert set().union(*given.values()) == {1, 2, 3, 4, 5, 6, 7}
    for name, numbers in given.items():
        assert numbers_in(named(name).__doc__) == numbers, name


def test_the_square_of_eq_3_stands_once(repository):
    """Matrices, vectors and single samples call it; the kernel alone has one of its own."""
    folder = repository / 'cdra_mm/core/scoring'
    found = {
        path.name: re.findall(
            r'square_?\(|addcmul|\*\* ?2\b|\.pow\(|(\b\w+) \* \1\b', path.read_text()
        )
        for path in folder.glob('*.py')
    }
    assert {name for name, lines in found.items() if lines} == {'squares.py', 'square_kernel.py'}
    assert not [
        p
        for p in ('vector_squares.py', 'ordinary_pass.py', 'one_by_one.py')
        if 'add_squared(' not in (folder / p).read_text()
    ]


def test_numbers_in_reads_lists():
    assert numbers_in('step 1 (Eqs. 4 and 7, Eq. 2)') == {2, 4, 7}
    assert numbers_in('equal to 3, Section 5') == set()
