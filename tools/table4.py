"""The trained shares of the CDRA paper's Tables 4, 6 and 7, and ours on SPT's masks, as Markdown.

    python tools/table4.py MASK_FILE.npz ... [--millions 0.8]

The paper gives neither a number of selected entries nor masks. SPT, whose selection it takes over,
released some: spt_sizes/estimate.py says how a plan of the size of SPT's is estimated from them.
Each budget between the others is then estimated without its own masks, and compared with them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from spt_sizes.estimate import (
    WEIGHTS,
    Estimate,
    Released,
    Size,
    has_lora,
    num_sides,
    read,
    without_its_masks,
)

from cdra_mm.command_line import run
from cdra_mm.errors import ConfigError

BACKBONE = 85_800_000  # parameters of ViT-B/16
# Table 4: percent of the backbone's parameters, by rank; the last row is the dynamic one.
PRINTED = {8: 0.42, 16: 0.76, 32: 1.45}
DYNAMIC = 0.49
RULES: list[tuple[str, dict[str, Any], float | None]] = [
    ('rank 8', {'rule': 8}, PRINTED[8]),
    ('rank 16', {'rule': 16}, PRINTED[16]),
    ('rank 32', {'rule': 32}, PRINTED[32]),
    ('Eq. 7 as printed', {'rule': 'eq7'}, DYNAMIC),
    ('Eq. 7 with 10 n', {'rule': 'eq7', 'alpha': 10}, DYNAMIC),
    ('Eq. 7 with 20 n', {'rule': 'eq7', 'alpha': 20}, DYNAMIC),
    ('count', {'rule': 'count'}, DYNAMIC),
    ('count with 2 n', {'rule': 'count', 'alpha': 2}, DYNAMIC),
]
# Tables 6 and 7: the same by what is adapted instead of R x C, whose share is `DYNAMIC` in both.
PARTS: list[tuple[str, dict[str, Any], float]] = [
    ('sides 1.5 times', {'size_ratio': 1.5}, 0.54),
    ('sides 0.5 times', {'size_ratio': 0.5}, 0.29),
    ('not-R x C', {'quadrant': '00'}, 0.74),
    ('R x not-C', {'quadrant': '11'}, 0.73),
    ('not-R x not-C', {'quadrant': '01'}, 0.48),
]


def trained(sizes: dict[str, Size], rule: dict[str, Any]) -> tuple[int, int]:
    """Parameters of the adapters by a rule, and how many matrices have one."""
    from cdra_mm.core import dynamic_rank

    ranks = {name: dynamic_rank(*size, WEIGHTS[name], **rule) for name, size in sizes.items()}
    params = sum(ranks[name] * (size.rows + size.cols) for name, size in sizes.items())
    return params, sum(rank > 0 for rank in ranks.values())


def sides_of(sizes: dict[str, Size], part: dict[str, Any]) -> int:
    """Rows and columns of what an ablation adapts of the matrices, none longer than its matrix."""
    from cdra_mm.core.planning.ablations import Ablation

    ablation, total = Ablation(**part), 0
    for name, size in sizes.items():
        high, wide = WEIGHTS[name]
        sides = ablation.resized(size.rows, high), ablation.resized(size.cols, wide)
        total += sum(ablation.sides(*sides, (high, wide)))
    return total


def compared(tasks: dict[str, dict[float, Released]], held: float) -> str:
    """What the estimates of a budget without its masks say, beside these masks."""
    named = right = known = single = 0
    shared: list[list[tuple[Size, Size]]] = []  # of each task, estimated and released
    for budgets in tasks.values():
        if held not in list(budgets)[1:-1]:
            continue
        sizes, there = without_its_masks(budgets, held), budgets[held]
        lora = {name for name, size in sizes.items() if has_lora(name, size.entries)}
        named, right = named + len(lora), right + len(lora & there.structured)
        known, single = known + len(there.structured), single + len(there.single)
        shared.append([(sizes[name], there.single[name]) for name in there.single if name in sizes])
    entries = max(
        abs(sum(a.entries for a, _ in t) / sum(b.entries for _, b in t) - 1) for t in shared
    )
    sides = max(abs(num_sides(a for a, _ in t) / num_sides(b for _, b in t) - 1) for t in shared)
    return (
        f'Made without the masks of {held:g} M, the estimate names {named} matrices as those that '
        f'SPT tunes with LoRA there; {right} of them are among the {known} that it does. Of the '
        f'{single} that it tunes entry by entry another budget has {sum(map(len, shared))}: their '
        f'selected entries are found to {100 * entries:.0f} %, their rows and columns to '
        f'{100 * sides:.0f} %, summed by task.'
    )


def percent(params: float) -> str:
    return f'{100 * params / BACKBONE:.2f}'


def table(head: list[str], rows: list[list[str]]) -> str:
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, ['---'] * len(head), *rows))


def line() -> tuple[float, float]:
    """Slope and intercept of the printed shares over the fixed ranks, in percent."""
    ranks, shares = list(PRINTED), list(PRINTED.values())
    x, y = sum(ranks) / len(ranks), sum(shares) / len(shares)
    up = sum((a - x) * (b - y) for a, b in PRINTED.items()) / sum((a - x) ** 2 for a in ranks)
    return up, y - up * x


def parts_of(plans: dict[str, tuple[dict[str, Size], float]]) -> list[list[str]]:
    """The rows for Tables 6 and 7: what one rank trains of other blocks than R x C."""
    slope, rest = line()
    ranks = [
        (DYNAMIC / 100 * BACKBONE - beside) / num_sides(sizes.values())
        for sizes, beside in plans.values()
    ]
    rows = [['rank', f'{(DYNAMIC - rest) / slope:.1f}', *(f'{rank:.1f}' for rank in ranks)]]
    for words, part, printed in PARTS:
        shares = [
            percent(rank * sides_of(sizes, part) + beside)
            for rank, (sizes, beside) in zip(ranks, plans.values(), strict=True)
        ]
        rows.append([f'{words}, %', f'{printed:.2f}', *shares])
    return rows


def report(tasks: dict[str, dict[float, Released]], millions: float) -> str:
    """The tables, and what was found without a budget's own masks."""
    slope, rest = line()
    released = [
        [
            task,
            f'{budget:g}',
            str(len(step.single)),
            str(len(step.structured)),
            f'{sum(size.entries for size in step.single.values()):,}',
            f'{num_sides(step.single.values()):,}',
            percent(step.beside),
        ]
        for task, budgets in tasks.items()
        for budget, step in budgets.items()
    ]
    plans = {task: Estimate(budgets).at(millions) for task, budgets in tasks.items()}
    count = [
        ['selected entries', '']
        + [f'{sum(size.entries for size in sizes.values()):,}' for sizes, _ in plans.values()],
        ['rows and columns', f'{slope / 100 * BACKBONE:,.0f}']
        + [f'{num_sides(sizes.values()):,}' for sizes, _ in plans.values()],
        ['vectors, %', f'{rest:.3f}'] + [percent(beside) for _, beside in plans.values()],
    ]
    for words, rule, printed in RULES:
        cells = []
        for sizes, beside in plans.values():
            params, adapted = trained(sizes, rule)
            cells.append(f'{percent(params + beside)} ({adapted} of {len(sizes)})')
        count.append([f'{words}, %', '' if printed is None else f'{printed:.2f}', *cells])
    inner = sorted({held for budgets in tasks.values() for held in list(budgets)[1:-1]})
    free = ' and '.join(f'{rest + times * (DYNAMIC - rest):.2f}' for times in (1.5, 0.5))
    return '\n\n'.join(
        (
            f'The fixed ranks of Table 4 lie on a line: {slope / 100 * BACKBONE:,.0f} parameters '
            f'for each rank, {rest:.3f} % beside them. The dynamic row is then a mean rank of '
            f'{(DYNAMIC - rest) / slope:.1f}.',
            'Released:',
            table(
                ['task', 'budget (M)', 'matrices with entries', 'matrices with LoRA']
                + ['entries', 'rows and columns', 'vectors, %'],
                released,
            ),
            f'Estimated, where SPT-LoRA-8 trains {millions:g} M (matrices that have a rank):',
            table(['', 'paper', *tasks], count),
            f'Tables 6 and 7 on the same estimate, with one rank in all matrices, by which R x C '
            f'trains the printed {DYNAMIC} %. Sides end at those of the matrix; if they did not, '
            f'1.5 and 0.5 times would train {free} %.',
            table(['', 'paper', *tasks], parts_of(plans)),
            *(compared(tasks, held) for held in inner),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('files', nargs='+', type=Path, metavar='MASK_FILE.npz')
    parser.add_argument(
        '--millions', type=float, default=0.8, help="SPT's budget; of those it released, 0.4 to 1.0"
    )
    arguments = parser.parse_args()
    tasks = {path.stem: read(path) for path in sorted(arguments.files)}
    for task, budgets in tasks.items():
        if not min(budgets) <= arguments.millions <= max(budgets):
            raise ConfigError(
                f'--millions {arguments.millions:g}: expected {min(budgets):g} to '
                f'{max(budgets):g}, the budgets that {task} was released for'
            )
    print(report(tasks, arguments.millions))


if __name__ == '__main__':
    run(main)
