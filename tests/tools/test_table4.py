"""What the paper's Table 4 and SPT's masks say of each other, as the page and its tool have it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.tools.project import REPOSITORY, call, refusal, succeed

QUERY = 'blocks.0.attn.q.weight'
# Of Tables 6 and 7, with the printed shares.
PARTS = [
    ('sides 1.5 times', '0.54'),
    ('sides 0.5 times', '0.29'),
    ('not-R x C', '0.74'),
    ('R x not-C', '0.73'),
    ('not-R x not-C', '0.48'),
]


def write_masks(path, name=QUERY, side=768, tables=True, budgets=('0.1', '1.0')):
    """A file with one matrix, whose selected entries grow with the budget."""
    arrays = {}
    for budget in budgets:
        index = np.arange(0, int(float(budget) * 1000), dtype=np.int32) * 7
        arrays[f'b{budget}/{name}'] = np.concatenate([np.int32([side, side]), index])
        if tables:
            structured = np.zeros((12, 6), dtype=np.int32)
            arrays[f'b{budget}/__structured__'] = structured
            arrays[f'b{budget}/__params_millions__'] = np.float32(float(budget) * 1e-3)
    np.savez(path, **arrays)
    return path


def test_table4_prints_what_the_page_says(spt_masks, tmp_path):
    """From the released masks: the page is what the tool prints, behind its explanation."""
    printed = succeed(tmp_path, 'table4', *spt_masks)
    page = (REPOSITORY / 'docs' / 'table4.md').read_text(encoding='utf-8')
    assert page.endswith(printed)
    rows = {row.split(' | ')[0].strip('| '): row.split(' | ')[1:] for row in printed.splitlines()}
    # Of the paper's own figures; what its authors can have run comes near them, Eq. 7 does not.
    assert (rows['rows and columns'][0], rows['vectors, %'][0]) == ('36,848', '0.075')
    for rule, low, high in (
        ('rank 16, %', 0.75, 1.2),
        ('count with 2 n, %', 0.45, 1.0),
        ('Eq. 7 as printed, %', 0.05, 0.25),
    ):
        shares = [float(cell.split()[0]) for cell in rows[rule][1:]]
        assert len(shares) == 4 and low < min(shares) <= max(shares) < high, rule
    # What the page's text says of Tables 6 and 7.
    text = ' '.join(page[: -len(printed)].split())
    ranges = []
    for part, share in PARTS:
        paper, *cells = (cell.strip(' |') for cell in rows[f'{part}, %'])
        assert paper == share
        ranges.append(f'{min(cells)} to {max(cells)}')
    wide, small, *parts = ranges
    assert f'(Table 6) train {wide} and {small} %' in text
    assert f'train {parts[0]}, {parts[1]} and {parts[2]} %' in text


def test_a_budget_between_the_others_is_estimated_without_its_masks(spt_masks, tmp_path):
    """From the released masks: what is found of 0.4 M, which is no part of that estimate."""
    printed = succeed(tmp_path, 'table4', *spt_masks[:1])
    assert printed.count('Made without the masks of') == 1
    found = re.search(r'of 0\.4 M, the estimate names (\d+) .*?; (\d+) .*? the (\d+) that', printed)
    assert found, printed
    named, right, known = map(int, found.groups())
    # As SPT's own table counts them.
    with np.load(spt_masks[0]) as arrays:
        assert known == int(arrays['b0.4/__structured__'].sum())
    assert known / 2 < right <= min(named, known)


@pytest.mark.parametrize(
    ('options', 'words', 'message'),
    [
        (dict(tables=False), [], "lacks 'b0.1/__structured__': expected a mask file of SPT"),
        (dict(name='layers.0.weight'), [], 'layers.0.weight (768, 768) is no matrix of the ViT'),
        (dict(side=384), [], f'{QUERY} (384, 384) is no matrix of the ViT-B/16'),
        (dict(budgets=('0.4',)), [], 'holds 1 budget: expected two'),
        ({}, ['--millions', '3'], '--millions 3: expected 0.1 to 1'),
    ],
)
def test_table4_refuses_what_it_cannot_read(options, words, message, tmp_path):
    path = write_masks(tmp_path / 'task.npz', **options)
    assert message in refusal(call(tmp_path, 'table4', path, *words))
