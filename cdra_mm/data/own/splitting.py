"""A validation split by a seeded share that keeps what belongs together on one side."""

from __future__ import annotations

import random
import re
from collections.abc import Hashable, Sequence

from cdra_mm.errors import ConfigError

__all__ = ['detect_groups', 'groups_by', 'split_by_share']

SEPARATORS = re.compile(r'[/_\-. ]')
INDEX = re.compile(r'(?:[A-Za-z]{0,6}\d+)+')  # 12, slice04, r1c3
FEWEST_GROUPS = 4


def groups_by(names: Sequence[str], expression: str) -> list[Hashable]:
    """The group of each name: what a regular expression finds in it.

    Args:
        names: Names without suffix, as paths below their folder.
        expression: Its first group counts, the whole match where it has none. Empty: every name
            is a group of its own.

    Raises:
        ConfigError: If it is no regular expression, or finds nothing in some name.
    """
    if not expression:
        return list(names)
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise ConfigError(f'--group-by {expression}: no regular expression ({error})') from None
    groups: list[Hashable] = []
    for name in names:
        found = pattern.search(name)
        if not found:
            raise ConfigError(
                f'--group-by {expression} finds nothing in {name}: expected an expression for what '
                r"images that belong together have in common, such as '^(patient\d+)_'"
            )
        groups.append(found[1] if pattern.groups else found[0])
    return groups


def detect_groups(names: Sequence[str]) -> tuple[list[Hashable], str]:
    """Groups of names that end in counters: tiles of an image, slices of a patient, frames.

    As many counters are taken off the ends as leave four groups, and two names in each on average.

    Args:
        names: Names without suffix, as paths below their folder.

    Returns:
        The group of each name and what was found in words, '' if every name is its own group.

    Example:
        >>> names = [f'tile_{i}_{j}_{k}' for i in range(5) for j in range(2) for k in range(2)]
        >>> detect_groups(names)[1]
        '5 groups of names such as tile_0 (4 images)'
    """
    chosen: list[Hashable] = list(names)
    said = ''
    for count in range(1, max((len(SEPARATORS.split(n)) for n in names), default=0)):
        groups = [_without_counters(name, count) for name in names]
        number = len(set(groups))
        if number < FEWEST_GROUPS:
            break
        numbered = sum(any(c.isdigit() for c in group) for group in set(groups))
        # A word alone is a kind of image (street_001), no image, patient or film.
        if 2 * number <= len(names) and 2 * numbered > number:
            chosen = list(groups)
            first = max(groups, key=groups.count)
            said = f'{number} groups of names such as {first} ({groups.count(first)} images)'
    return chosen, said


def split_by_share(groups: Sequence[Hashable], share: float, seed: int) -> list[bool]:
    """Draws whole groups until the share of all is reached as nearly as may be.

    Args:
        groups: The group of each sample.
        share: Share to draw, between 0 and 1.
        seed: Of the draw.

    Returns:
        Whether each sample is drawn; some are and some are not.

    Raises:
        ConfigError: If the share is none, or there is one group alone.
    """
    if not 0 < share < 1:
        raise ConfigError(f'--val-share {share}: expected a share between 0 and 1, such as 0.2')
    order = sorted(set(groups), key=str)
    if len(order) < 2:
        raise ConfigError(
            f'all {len(groups)} images are one group ({order[0] if order else "none"}), which '
            "cannot be split: change --group-by, or give --group-by '' to split single images"
        )
    random.Random(seed).shuffle(order)
    sizes = {group: 0 for group in order}
    for group in groups:
        sizes[group] += 1
    wanted, drawn, taken = share * len(groups), 0, set()
    for group in order[:-1]:
        if abs(drawn + sizes[group] - wanted) < abs(drawn - wanted):
            taken.add(group)
            drawn += sizes[group]
    if not taken:  # every group is larger than the share: the smallest is nearest to it
        taken.add(min(order, key=lambda group: sizes[group]))
    return [group in taken for group in groups]


def _without_counters(name: str, count: int) -> str:
    """A name without at most so many counters at its end."""
    for _ in range(count):
        ends = [match.start() for match in SEPARATORS.finditer(name)]
        if not ends or not INDEX.fullmatch(name[ends[-1] + 1 :]):
            break
        name = name[: ends[-1]]
    return name
