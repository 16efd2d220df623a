"""Counting what is there of a data set, split by split, without opening an image."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from cdra_mm.spelling import first_of

from .layout import Fault, Listing, Split
from .source import Source
from .sources import find_source

__all__ = ['Report', 'SplitState', 'check']

NAMED = 5  # folders or parts that a message names before it only counts the rest


@dataclass(frozen=True)
class SplitState:
    """What is there of a split.

    Attributes:
        split: What should be there.
        listing: What was found.
    """

    split: Split
    listing: Listing

    @property
    def found(self) -> int:
        """Number of usable samples."""
        return len(self.listing.samples)

    def line(self) -> str:
        """One line of the table that the tool prints."""
        want = '' if self.split.count is None else f' of {self.split.count:>6}'
        text = f'  {self.split.name:<14} {self.listing.images:>6}{want} images'
        return text + (
            f'  {self.listing.labels:>6}{want} labels' if self.listing.labels is not None else ''
        )


@dataclass(frozen=True)
class Report:
    """What is there of a data set.

    Attributes:
        source: The data set.
        root: The folder that was looked into.
        states: One entry a split.
        compared: What is wrong between the splits of a part.
        notes: Sentences on optional parts.
    """

    source: Source
    root: Path
    states: tuple[SplitState, ...]
    compared: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every split is complete and no fault was found."""
        return not self.problem()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Every fault of parts that are there at all, in the order of the splits."""
        absent = self.absent_parts()
        states = [s for s in self.states if s.split.part not in absent]
        return (*(fault for state in states for fault in state.listing.faults), *self.compared)

    def parts(self) -> dict[str, list[SplitState]]:
        """The states of each part, in order."""
        groups = groupby(self.states, key=lambda state: state.split.part)
        return {part: list(states) for part, states in groups}

    def absent_parts(self) -> list[str]:
        """Parts of which nothing is there."""
        return [
            part
            for part, states in self.parts().items()
            if not any(state.listing.images or state.listing.labels for state in states)
            and not (part and (self.root / part).exists())
        ]

    def problem(self) -> str:
        """What is missing or wrong, in one line; empty for a complete data set."""
        absent = self.absent_parts()
        if len(absent) == len(self.parts()):
            folders = first_of((self.root / entry for entry in self.source.entries), NAMED)
            return f'nothing of {self.source.name} is there ({folders})'
        troubles = [f'{first_of(absent, NAMED)} not there'] if absent else []
        for part, states in self.parts().items():
            if part not in absent:
                troubles += self.part_troubles(part, states)
        if not troubles and self.faults:
            troubles = [str(self.faults[0])]
        if not troubles:
            return ''
        return f'{self.source.name} in {self.root} is not complete: ' + '; '.join(troubles)

    def part_troubles(self, part: str, states: list[SplitState]) -> list[str]:
        """What the splits of a part lack, a text each; splits of one group count together."""
        groups: dict[str, list[SplitState]] = {}
        for state in states:
            groups.setdefault(state.split.group or state.split.name, []).append(state)
        troubles = []
        for members in groups.values():
            found = sum(state.found for state in members)
            counts = [state.split.count for state in members]
            want = found if None in counts else sum(count for count in counts if count is not None)
            wrong = found != want if members[0].split.exact else found < want
            faulty = [state for state in members if state.listing.faults]
            if wrong or faulty:
                name = ' '.join(filter(None, (part, '+'.join(s.split.name for s in members))))
                troubles.append(_trouble(name, members, found, want, faulty))
        return troubles

    def lines(self) -> list[str]:
        """The table that the tool prints: a heading, a line a split, the notes."""
        lines = [f'{self.source.name} in {self.root}: {self.source.title}']
        absent = self.absent_parts()
        for part, states in self.parts().items():
            if part in absent and part:
                continue
            lines += [f'  {part}:'] if part and len(self.parts()) > 1 else []
            lines += [state.line() for state in states]
        if absent and absent != ['']:
            lines.append(f'  not there: {", ".join(absent)}')
        return [*lines, *self.notes]


def check(name: str, root: str | Path) -> Report:
    """Count the samples of each split of a data set.

    Files are counted, not decoded; an empty file counts as missing. Lists are read in full.

    Args:
        name: A key of :data:`~cdra_mm.data.SOURCES`.
        root: The folder that was given to :func:`~cdra_mm.data.prepare`.

    Returns:
        The counts, and whether they are complete.

    Raises:
        DataError: If the data set is unknown, or the record of a generated one is damaged.
    """
    root = Path(root)
    source, notes = find_source(name).fitted(root)
    states = tuple(SplitState(split, split.read(root)) for split in source.splits)
    compared: list[Fault] = []
    for _, group in groupby(states, key=lambda state: state.split.part):
        members = [(state.split, state.listing) for state in group]
        compared += members[0][0].compare(root, members)
    return Report(source, root, states, tuple(compared), notes)


def _trouble(
    name: str, members: list[SplitState], found: int, want: int, faulty: list[SplitState]
) -> str:
    listing = members[0].listing
    text = f'{name} has {found} of {want} images'
    if listing.labels is not None:
        text = (
            f'{name} has {listing.images} images, {listing.labels} labels, {found} of {want} pairs'
        )
    faults = [fault for state in faulty for fault in state.listing.faults]
    if faults:
        text += f' ({first_of(faults)})'
    return text
