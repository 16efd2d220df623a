"""What was found of a config's data, and how that is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from cdra_mm.data.classes import Tally, class_lines
from cdra_mm.data.layout import Fault
from cdra_mm.spelling import first_of

from .label_rule import LabelRule

__all__ = ['DataReport', 'DatasetReport']

LISTED = 10  # faults that are printed before the rest is only counted


@dataclass
class DatasetReport:
    """What was found of one data set.

    Attributes:
        split: ``'train'``, ``'val'``, ``'test'``, or several that read the same data.
        where: The setting that names it.
        samples: Number of samples.
        classes: Class names by label id; empty where there are none.
        tally: Images and pixels of each label id, as the loss gets them.
        sizes: Number of images of each size (height, width).
        faults: What cannot be used.
        remarks: What is unusual: the kind, with the first file and how many more there are.
        mistakes: Sentences on labels that fit and look wrong all the same.
    """

    split: str
    where: str
    samples: int = 0
    classes: Sequence[str] = ()
    tally: Tally = field(default_factory=Tally)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The data set in some lines, classes left out."""
        line = f'  {self.split:<10} {self.samples:>7} samples'
        if self.sizes:
            heights, widths = zip(*self.sizes, strict=True)
            if len(self.sizes) == 1:
                line += f'  all {heights[0]} x {widths[0]} (height x width)'
            else:
                (height, width), count = self.sizes.most_common(1)[0]
                line += (
                    f'  {min(heights)} to {max(heights)} x {min(widths)} to {max(widths)} '
                    f'(height x width; {count} are {height} x {width})'
                )
        lines = [f'{line}  ({self.where})']
        for kind, paths in self.remarks.items():
            lines.append(f'    {first_of(paths)} {kind}')
        lines += [f'    {mistake}' for mistake in self.mistakes]
        if self.faults:
            lines.append(f'    {len(self.faults)} wrong:')
            lines += [f'      {fault}' for fault in self.faults[:LISTED]]
            if len(self.faults) > LISTED:
                lines.append(f'      and {len(self.faults) - LISTED} more')
        return lines


@dataclass(frozen=True)
class DataReport:
    """What was found of the data of a config.

    Attributes:
        config: Name of the config.
        datasets: An entry each data set.
        remarks: Settings that do not fit each other, depending on the images.
        rule: What the head takes; None for a head without classes.
    """

    config: str
    datasets: tuple[DatasetReport, ...]
    remarks: tuple[str, ...] = ()
    rule: LabelRule | None = None

    @property
    def good(self) -> bool:
        """Whether everything can be trained on and labels mean what they should."""
        return not self.problem()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Every file that cannot be used."""
        return tuple(fault for dataset in self.datasets for fault in dataset.faults)

    @property
    def mistakes(self) -> tuple[str, ...]:
        """Everything that can be used and looks wrong."""
        return (*self.remarks, *(line for dataset in self.datasets for line in dataset.mistakes))

    def problem(self) -> str:
        """What is wrong, in one line; empty for good data."""
        found = [str(fault) for fault in self.faults] or list(self.mistakes)
        if not found:
            return ''
        return f'data of {self.config}: {first_of(found)}'

    def lines(self) -> list[str]:
        """The listing that the tool prints: counts, sizes, classes, what is wrong."""
        lines = [f'data of {self.config}']
        for dataset in self.datasets:
            lines += dataset.lines()
        tallies: dict[str, Tally] = {}
        for dataset in self.datasets:
            tally = tallies.setdefault(dataset.split, Tally())
            tally.images.update(dataset.tally.images)
            tally.pixels.update(dataset.tally.pixels)
        number = self.rule.num_classes if self.rule is not None else None
        classes = max((dataset.classes for dataset in self.datasets), key=len, default=())
        names = dict(enumerate(classes))
        if self.rule is not None and self.rule.ignored is not None:
            names.setdefault(self.rule.ignored, '(ignored)')
        text = class_lines(tallies, number or len(classes), names=names)
        if text:
            is_map = any(tally.pixels for tally in tallies.values())
            lines.append(f'images{" (share of pixels)" if is_map else ""} with each class:')
            lines += text
        return [*lines, *self.remarks]
