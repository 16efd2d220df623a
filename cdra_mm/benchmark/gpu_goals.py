"""What a training step and scores should cost on a GPU, and whether measurements say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .compared_models import FULL, LORA
from .steady_scores import MEAN_MORE, ONE_MORE

__all__ = ['SCORED', 'STEPS', 'goals', 'verdicts']

Record = dict[str, Any]
Figures = dict[str, float | None]  # by where it was measured; None where it was not
Setting = tuple[str, int, int]  # mode, batch, image size

# The most important first.
STEPS: tuple[Setting, ...] = (
    ('eager', 32, 224),
    ('graph', 32, 224),
    ('eager', 8, 224),
    ('graph', 8, 224),
    ('graph', 64, 224),
    ('eager', 64, 224),
    ('graph', 8, 512),
    ('compile', 32, 224),
)
SCORED = (32, 64)  # batches
OURS = ('ours paper', 'ours spt')
SHOWN = 2  # of what a goal lacks: the table names all that was left out


@dataclass(frozen=True)
class Goal:
    """One goal.

    Attributes:
        text: What it says.
        limit: What no figure may exceed.
        figures: Finds them in the records.
        below: Whether a figure must be less than the limit.
    """

    text: str
    limit: float
    figures: Callable[[Sequence[Record]], Figures]
    below: bool = False

    def verdict(self, records: Sequence[Record]) -> str:
        """Met, not met or not measured, and where.

        Args:
            records: Those of `compare_steps` and `compare_steady_scores`.
        """
        figures = self.figures(records)
        known = {place: value for place, value in figures.items() if value is not None}
        missed = {place: value for place, value in known.items() if not self._holds(value)}
        unknown = [place for place in figures if place not in known]
        more = f' and {len(unknown) - SHOWN} more' if len(unknown) > SHOWN else ''
        lacking = f'not measured: {"; ".join(unknown[:SHOWN])}{more}' if unknown else ''
        if missed:
            return f'NOT MET: {_listed(missed)}' + (f'; {lacking}' if lacking else '')
        if not known:
            return 'not measured'
        worst = max(known, key=lambda place: known[place])
        told = f'the most is {_listed({worst: known[worst]})}'
        return f'met where measured, {told}; {lacking}' if lacking else f'met, {told}'

    def _holds(self, value: float) -> bool:
        return value < self.limit if self.below else value <= self.limit


def _listed(figures: dict[str, float]) -> str:
    return ', '.join(f'x {value:.3f} ({place})' for place, value in figures.items())


def goals() -> Iterator[Goal]:
    """The goals, in the order of their importance."""
    eager = [setting for setting in STEPS if setting[0] == 'eager']
    yield Goal('eager step below full fine-tuning', 1, _steps('full', eager), below=True)
    yield Goal('eager step at most 1.30 of the frozen limit', 1.3, _steps('frozen_limit', eager))
    for name, limit in zip(OURS, (1.10, 1.05), strict=True):
        yield Goal(
            f'{name}, graph or compile, at most {limit:.2f} of the frozen limit',
            limit,
            _best_of_graph_and_compile(name),
        )
    yield Goal("every step below peft's LoRA", 1, _steps('peft_lora', STEPS), below=True)
    for name, entry in (('scores', ONE_MORE), ('mean gradients', MEAN_MORE)):
        text = f'{name}, each batch more, at most 1.30 of a backward'
        yield Goal(text, 1.3, _scoring(entry))
    for other in (LORA, FULL):
        yield Goal(f'peak memory of a step below {other}', 1, _memory(other, eager), below=True)


def verdicts(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """Each goal and what the records say of it."""
    for goal in goals():
        yield f'goal: {goal.text}', goal.verdict(records)


def _place(setting: Setting) -> str:
    return '{}, batch {}, {} px'.format(*setting)


def _step(records: Sequence[Record], setting: Setting) -> dict[str, dict[str, Any]]:
    """The candidates of a step's record, none where it was not measured."""
    for record in records:
        here = tuple(record.get(key) for key in ('mode', 'batch', 'image_size'))
        if record.get('benchmark') == 'step' and here == setting:
            candidates: dict[str, dict[str, Any]] = record['candidates']
            return candidates
    return {}


def _steps(other: str, settings: Sequence[Setting]) -> Callable[[Sequence[Record]], Figures]:
    """Ratios of the times of ours to another's."""

    def figures(records: Sequence[Record]) -> Figures:
        return {
            f'{name}, {_place(setting)}': _step(records, setting)
            .get(name, {})
            .get(f'ratio_vs_{other}')
            for setting in settings
            for name in OURS
        }

    return figures


def _best_of_graph_and_compile(name: str) -> Callable[[Sequence[Record]], Figures]:
    def figures(records: Sequence[Record]) -> Figures:
        found: Figures = {}
        for batch in (32, 64):
            settings = [(mode, batch, 224) for mode in ('graph', 'compile')]
            steps = [_step(records, setting).get(name, {}) for setting in settings]
            ratios = [s['ratio_vs_frozen_limit'] for s in steps if 'ratio_vs_frozen_limit' in s]
            found[f'batch {batch}'] = min(ratios, default=None)
        return found

    return figures


def _scoring(name: str) -> Callable[[Sequence[Record]], Figures]:
    """What an entry of `compare_steady_scores` takes of a backward."""

    def figures(records: Sequence[Record]) -> Figures:
        found: Figures = dict.fromkeys(f'batch {batch}' for batch in SCORED)
        for record in records:
            if record.get('benchmark') == 'steady scores':
                entry = record['candidates'].get(name, {})
                found[f'batch {record["batch"]}'] = entry.get('ratio_vs_backward')
        return found

    return figures


def _memory(other: str, settings: Sequence[Setting]) -> Callable[[Sequence[Record]], Figures]:
    """Ratios of the peaks of ours to another's, weights and AdamW's state included."""

    def figures(records: Sequence[Record]) -> Figures:
        found: Figures = {}
        for setting in settings:
            candidates = _step(records, setting)
            whole = candidates.get(other, {}).get('peak_bytes')
            for name in OURS:
                peak = candidates.get(name, {}).get('peak_bytes')
                found[f'{name}, {_place(setting)}'] = peak / whole if peak and whole else None
        return found

    return figures
