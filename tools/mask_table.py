"""The compact blocks of given masks: sizes, density, and ranks under both rules, as Markdown.

    python tools/mask_table.py MASK_FILE.npz ... > docs/spt_masks.md

A file holds, for several budgets, arrays named ``b{budget}/{weight}``: int32 ``[O, I, i0, ...]``,
the shape of a weight (I = 0 for a vector) and the flat indices of its selected entries. Names that
begin with two underscores are skipped.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch

from cdra_mm.core import CDRAError, DataError, Plan, plan_from_masks

HEAD = (
    '| task | budget (M) | matrices | selected entries | rows | columns | density | '
    'rank > 0 by Eq. 7 | rank > 0 by count | rank by count, median / max | '
    'parameters by Eq. 7 | parameters by count |'
)


def read_masks(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The matrix masks of a file by budget."""
    budgets: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                budget, _, name = key.partition('/')
                height, width, *indices = file[key].tolist() if name[:2] != '__' else (0, 0)
                if height and width:
                    mask = torch.zeros(height * width, dtype=torch.bool)
                    mask[indices] = True
                    budgets[budget.removeprefix('b')][name] = mask.view(height, width)
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f'{path} is no mask file: {error}') from None
    return budgets


def row(task: str, budget: str, masks: dict[str, torch.Tensor]) -> tuple[str, list[int]]:
    plans: dict[str, Plan] = {r: plan_from_masks(masks, rank_rule=r) for r in ('eq7', 'count')}
    blocks = [*plans['count'].blocks, *plans['count'].dropped]
    ranks = [block.rank for block in plans['count'].blocks] or [0]
    cells = (
        task,
        budget,
        len(blocks),
        f'{sum(b.num_sensitive for b in blocks):,}',
        f'{mean(len(b.rows) for b in blocks):.0f}',
        f'{mean(len(b.cols) for b in blocks):.0f}',
        f'{100 * mean(b.density for b in blocks):.0f} %',
        len(plans['eq7'].blocks),
        len(plans['count'].blocks),
        f'{median(ranks):g} / {max(ranks)}',
        f'{plans["eq7"].num_trainable:,}',
        f'{plans["count"].num_trainable:,}',
    )
    totals = [len(blocks), len(plans['eq7'].blocks), len(plans['count'].blocks)]
    return '| ' + ' | '.join(map(str, cells)) + ' |', totals


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('files', nargs='+', type=Path, metavar='MASK_FILE.npz')
    arguments = parser.parse_args()
    lines, totals = [HEAD, '|' + '---|' * HEAD.count(' | ') + '---|'], [0, 0, 0]
    try:
        for path in sorted(arguments.files):
            for budget, masks in sorted(read_masks(path).items()):
                line, counts = row(path.stem, budget, masks)
                lines.append(line)
                totals = [a + b for a, b in zip(totals, counts, strict=True)]
    except CDRAError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    print('\n'.join(lines))
    print(
        f'\n{totals[0]} matrices: {totals[1]} get a rank by Eq. 7, {totals[2]} by the count rule.'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
