"""A plan as a table that a person reads in the log."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from statistics import mean, median

from torch import nn

from cdra_mm.columns import aligned
from cdra_mm.core import Block, Plan, find_targets, resolve

__all__ = ['describe_plan']

LISTED = 4  # parameters named one by one
HEAD = ('matrix', 'adapted', 'rank min/median/max', 'mean block', 'density', 'parameters')


def describe_plan(plan: Plan, backbone: nn.Module) -> str:
    """The plan per matrix type, with the trainable share of the backbone."""
    total = sum(p.numel() for name, p in backbone.named_parameters() if '.cdra.' not in f'.{name}')
    by_role: dict[str, list[Block]] = defaultdict(list)
    targets = find_targets(backbone) if plan.blocks or plan.dropped else {}
    for block in (*plan.blocks, *plan.dropped):
        target = targets.get(block.name) or resolve(backbone, block.name)
        by_role[target.role].append(block)
    rows = [_row(role, blocks) for role, blocks in by_role.items()]
    lines = [f'{plan.method}: {plan.num_trainable:,} of {total:,} backbone parameters are trained '
             f'({100 * plan.num_trainable / total:.3f} %)']  # fmt: skip
    if rows:
        lines += ['', aligned(HEAD, rows)]
    followed = plan.settings.get('energy_share')
    if isinstance(followed, float):
        lines += ['', f"{100 * followed:.1f} % of the mean gradients' energy can be followed"]
    elif plan.num_competing:
        share = f'{plan.num_sensitive:,} of {plan.num_competing:,}'
        lines += ['', f'{share} competing entries selected']
    whole = [v for v in plan.vectors if v.indices is None]
    if plan.vectors:
        parameters = sum(v.num_params for v in plan.vectors)
        lines.append(
            f'{len(plan.vectors)} vectors: {len(whole)} trained whole, '
            f'{len(plan.vectors) - len(whole)} in part, {parameters:,} parameters'
        )
    if plan.sparse:
        entries = sum(matrix.num_params for matrix in plan.sparse)
        lines.append(f'{len(plan.sparse)} matrices: {entries:,} single entries trained')
    for kind, count in sorted(Counter(part.kind for part in plan.parts).items()):
        parameters = sum(part.num_params for part in plan.parts if part.kind == kind)
        lines.append(f'{count} of kind {kind}: {parameters:,} parameters')
    lines += _whole(plan.also_train)
    if plan.dropped:
        lost = sum(block.num_sensitive for block in plan.dropped)
        lines.append(
            f'{len(plan.dropped)} matrices stay frozen because their rank is 0; they hold {lost:,} '
            f'selected entries ({100 * lost / max(plan.num_sensitive, 1):.1f} %)'
        )
    return '\n'.join(lines)


def _whole(also_train: Mapping[str, int]) -> list[str]:
    if len(also_train) > LISTED:
        total = sum(also_train.values())
        return [f'{len(also_train)} parameters trained whole, {total:,} entries']
    return [f'{name}: trained whole, {n:,} parameters' for name, n in also_train.items()]


def _row(role: str, blocks: list[Block]) -> tuple[str, ...]:
    adapted = [block for block in blocks if block.rank]
    if not adapted:
        return role, f'0 of {len(blocks)}', '-', '-', '-', '0'
    ranks = [block.rank for block in adapted]
    selected = any(block.num_sensitive for block in adapted)
    height = mean(len(block.rows) for block in adapted)
    width = mean(len(block.cols) for block in adapted)
    return (
        role,
        f'{len(adapted)} of {len(blocks)}',
        f'{min(ranks)} / {median(ranks):g} / {max(ranks)}',
        f'{height:.0f} x {width:.0f}',
        f'{100 * mean(block.density for block in adapted):.0f} %' if selected else '-',
        f'{sum(block.num_params for block in adapted):,}',
    )
