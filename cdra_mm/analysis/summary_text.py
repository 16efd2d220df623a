"""What a run tuned, cost and gave, in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from cdra_mm.progress import duration

from .regions import Region
from .run import Run

__all__ = ['Sections', 'size', 'summary_sections']

Sections = list[tuple[str, list[str]]]
"""Headings, each with its sentences."""


def summary_sections(run: Run, regions: list[Region]) -> Sections:
    """The first page of a report: what was tuned, what it cost, what it gave."""
    return [
        ('What was tuned', list(_tuned(run, regions))),
        ('What it cost', list(_cost(run))),
        ('What it gave', list(_gain(run))),
    ]


def _tuned(run: Run, regions: list[Region]) -> Iterator[str]:
    plan, summary = run.plan, run.summary
    trained, total = summary.get('trainable_backbone'), summary.get('backbone_parameters')
    if trained is None and plan is not None:
        trained = plan.num_trainable
    method = f'The method is {run.method}.' if run.method else 'The method is not known.'
    if trained is not None and total:
        share = f'{100 * trained / total:.3g} %'
        method += f' It trains {trained:,} of {total:,} backbone parameters ({share})'
    elif trained is not None:
        method += f' It trains {trained:,} parameters of the backbone'
    if trained is not None:
        head = summary.get('trainable_head')
        method += f', and {head:,} outside of it (the head).' if head is not None else '.'
    yield method
    if plan is None:
        return
    if plan.num_competing and plan.num_sensitive:
        percent = 100 * plan.num_sensitive / plan.num_competing
        yield (
            f'{plan.num_sensitive:,} of {plan.num_competing:,} entries that competed were found '
            f'sensitive ({percent:.2g} %).'
        )
    ranks = [region.rank for region in regions if region.rank]
    if ranks:
        spread = f'{min(ranks)} to {max(ranks)}' if min(ranks) < max(ranks) else f'{ranks[0]}'
        yield (
            f'{_count(len(ranks), "matrix", "matrices")} adapted by a low-rank update of rank '
            f'{spread} (median {median(ranks):g}).'
        )
    single = [region for region in regions if region.rank is None]
    if single:
        entries = sum(region.num_params for region in single)
        yield f'In {len(single)} matrices single entries are trained, {entries:,} in all.'
    frozen = [region for region in regions if region.rank == 0]
    if frozen:
        lost = sum(region.num_selected for region in frozen)
        yield (
            f'{_count(len(frozen), "matrix", "matrices")} touched but frozen, because the rank '
            f'comes out as 0; they hold {100 * lost / max(1, plan.num_sensitive):.1f} % of the '
            'sensitive entries.'
        )
    if plan.vectors:
        entries = sum(vector.num_params for vector in plan.vectors)
        yield f'Of {len(plan.vectors)} biases, norms and scales {entries:,} entries are trained.'
    if plan.parts:
        entries = sum(part.num_params for part in plan.parts)
        kinds = ', '.join(sorted({part.kind for part in plan.parts}))
        yield f'{len(plan.parts)} parts of the kind {kinds} were added, {entries:,} parameters.'
    if plan.also_train:
        entries = sum(plan.also_train.values())
        what = _count(len(plan.also_train), 'other weight', 'other weights')
        yield f'{what} trained whole, {entries:,} parameters.'


def _cost(run: Run) -> Iterator[str]:
    summary = run.summary
    if summary.get('scoring_seconds'):
        yield f'Scoring took {duration(summary["scoring_seconds"])}.'
    if 'training_seconds' in summary:
        yield f'Training took {duration(summary["training_seconds"])}.'
    elif run.scalars:
        yield f'The log reaches step {run.scalars[-1]["step"]:,}; the run has not ended.'
    if 'checkpoint_bytes' in summary:
        yield f'A checkpoint takes {size(summary["checkpoint_bytes"])}.'
    if 'adapter_bytes' in summary:
        yield f'What was learnt of the backbone takes {size(summary["adapter_bytes"])} on its own.'
    if not summary and not run.scalars:
        yield 'Not known: nothing that was named says so.'


def _gain(run: Run) -> Iterator[str]:
    known = False
    for key, where in (('metrics', 'validation'), ('test_metrics', 'test')):
        metrics = {k: v for k, v in (run.summary.get(key) or {}).items() if _is_number(v)}
        if metrics:
            known = True
            figures = ', '.join(f'{name} {value:.4g}' for name, value in metrics.items())
            yield f'On the {where} images: {figures}.'
    if not known:
        yield 'Not known: no metrics were measured, or the run has not ended.'


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(number: int, one: str, many: str) -> str:
    return f'{number} {one} is' if number == 1 else f'{number} {many} are'


def size(number: float) -> str:
    """Bytes in words.

    Example:
        >>> size(463390), size(31455671)
        ('452.5 KiB', '30.0 MiB')
    """
    for unit, scale in (('GiB', 2**30), ('MiB', 2**20)):
        if number >= scale:
            return f'{number / scale:.1f} {unit}'
    return f'{number / 2**10:.1f} KiB'
