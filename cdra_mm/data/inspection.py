"""Looking at every file of a data set: are they whole, and do labels mean what they should?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cdra_mm.progress import Progress, progress_line
from cdra_mm.spelling import first_of

from .classes import Tally, class_lines
from .completeness import Report, SplitState, check
from .decoding import decoded, map_on_all_cores, size_fault
from .layout import Fault
from .pairs import PairSplit

__all__ = ['Inspection', 'inspect_data']

LISTED = 10  # faults that are printed before the rest is only counted

Key = tuple[Path, 'Path | None']


@dataclass(frozen=True)
class Inspection:
    """What is there of a data set, and what is wrong with it.

    Attributes:
        report: The counts.
        tallies: How often each class occurs, by part and split.
        damaged: Files that cannot be decoded and label maps that do not fit.
    """

    report: Report
    tallies: dict[str, dict[str, Tally]]
    damaged: tuple[Fault, ...]

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Everything that is wrong, missing files first."""
        return (*self.report.faults, *self.damaged)

    @property
    def good(self) -> bool:
        """Whether the data set is complete and nothing is wrong with it."""
        return not self.problem()

    def problem(self) -> str:
        """What is missing or wrong, in one line; empty for a good data set."""
        problem = self.report.problem()
        if self.damaged:
            damaged = first_of(self.damaged)
            where = f'{self.report.source.name} in {self.report.root} is damaged: '
            problem = f'{problem}; {damaged}' if problem else where + damaged
        return problem

    def lines(self) -> list[str]:
        """The listing that the tool prints: counts, classes, faults."""
        lines = self.report.lines()
        parts = self.report.parts()
        for part, tallies in self.tallies.items():
            num_classes = parts[part][0].split.num_classes
            text = class_lines(tallies, num_classes, table=len(parts) == 1)
            if text:
                kind = parts[part][0].listing.labels is not None
                lines.append(
                    f'images{" (share of pixels)" if kind else ""} with each class'
                    + (f', {part}:' if part else ':')
                )
                lines += text
        if self.faults:
            lines.append(f'{len(self.faults)} wrong:')
            lines += [f'  {fault}' for fault in self.faults[:LISTED]]
            if len(self.faults) > LISTED:
                lines.append(f'  and {len(self.faults) - LISTED} more')
        return lines


def inspect_data(name: str, root: str | Path, *, progress: Progress | None = None) -> Inspection:
    """Decode every image and label map of a data set and count its classes.

    Nothing is written. An image that several splits list is decoded once.

    Args:
        name: A key of :data:`~cdra_mm.data.SOURCES`.
        root: The folder that was given to :func:`~cdra_mm.data.prepare`.
        progress: Called with (images done, total); a line on the terminal by default.

    Raises:
        DataError: If the data set is unknown, the record of a generated one is damaged, or Pillow
            is missing.
    """
    report = check(name, root)
    owners: dict[Key, list[SplitState]] = {}
    tallies: dict[str, dict[str, Tally]] = {}
    for state in report.states:
        tally = tallies.setdefault(state.split.part, {})[state.split.name] = Tally()
        for sample in state.listing.samples:
            owners.setdefault((sample.image, sample.label_map), []).append(state)
            if sample.label is not None:
                tally.images[sample.label] += 1
    show = progress_line('checking', unit='images') if progress is None else progress
    damaged: list[Fault] = []
    looks = zip(owners, map_on_all_cores(_look, owners), strict=True)
    for done, (key, (histogram, faults)) in enumerate(looks):
        show(done, len(owners))
        damaged += faults
        for state in owners[key]:
            tally = tallies[state.split.part][state.split.name]
            for number, pixels in histogram.items():
                tally.images[number] += 1
                tally.pixels[number] += pixels
        split = owners[key][0].split
        if key[1] is not None and isinstance(split, PairSplit):
            damaged += _foreign_ids(key[1], histogram, split)
    show(len(owners), len(owners))
    return Inspection(report, tallies, tuple(damaged))


Look = tuple[dict[int, int], list[Fault]]


def _look(key: Key) -> Look:
    image, label_map = key
    faults: list[Fault] = []
    with decoded(image, faults) as picture:
        size = None if picture is None else picture.size
    if label_map is None:
        return {}, faults
    with decoded(label_map, faults) as label:
        if label is None:
            return {}, faults
        faults += size_fault(label_map, label.size, image, size)
        if label.mode not in ('L', 'P'):
            what = f'has mode {label.mode}, expected one channel of class ids (8 bits)'
            return {}, [*faults, Fault(str(label_map), what)]
        return {number: count for number, count in enumerate(label.histogram()) if count}, faults


def _foreign_ids(label_map: Path, histogram: dict[int, int], split: PairSplit) -> list[Fault]:
    if split.num_classes is None:
        return []
    known = {*range(split.num_classes), *split.void}
    foreign = sorted(set(histogram) - known)
    if not foreign:
        return []
    void = f' or {", ".join(map(str, split.void))}' if split.void else ''
    what = f'holds ids {", ".join(map(str, foreign[:5]))}, expected 0 to {split.num_classes - 1}'
    return [Fault(str(label_map), what + void)]
