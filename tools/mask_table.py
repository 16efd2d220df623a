"""The compact blocks of given masks: sizes, density, and ranks under both rules, as Markdown.

    python tools/mask_table.py MASK_FILE.npz ... > docs/spt_masks.md

What a mask file holds: cdra_mm/reading/mask_file.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean, median

import torch

from cdra_mm.command_line import run
from cdra_mm.core import Plan, plan_from_masks
from cdra_mm.reading import read_masks

HEAD = (
    '| task | budget (M) | matrices | selected entries | rows | columns | density | '
    'rank > 0 by Eq. 7 | rank > 0 by count | rank by count, median / max | '
    'parameters by Eq. 7 | parameters by count |'
)


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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('files', nargs='+', type=Path, metavar='MASK_FILE.npz')
    arguments = parser.parse_args()
    lines, totals = [HEAD, '|' + '---|' * HEAD.count(' | ') + '---|'], [0, 0, 0]
    for path in sorted(arguments.files):
        for budget, masks in sorted(read_masks(path).items()):
            line, counts = row(path.stem, budget, masks)
            lines.append(line)
            totals = [a + b for a, b in zip(totals, counts, strict=True)]
    print('\n'.join(lines))
    print(
        f'\n{totals[0]} matrices: {totals[1]} get a rank by Eq. 7, {totals[2]} by the count rule.'
    )


if __name__ == '__main__':
    run(main)
