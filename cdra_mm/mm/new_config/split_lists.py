"""The splits of a new config, and the lists of names that some of them need."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cdra_mm.data.own.pairing import SPLITS, Pair, Pairing, SplitPairs
from cdra_mm.data.own.splitting import detect_groups, groups_by, split_by_share
from cdra_mm.errors import DataError

from .content import SplitFiles

__all__ = ['Splits', 'make_splits', 'sources_of']


@dataclass(frozen=True)
class Splits:
    """The pairs of each split.

    Attributes:
        parts: The part that the pairs of ``train``, ``val`` and ``test`` lie in.
        names: Their pairs.
        lines: What was decided, for people.
    """

    parts: dict[str, SplitPairs]
    names: dict[str, Sequence[Pair]]
    lines: tuple[str, ...]

    def moved(self, pairing: Pairing) -> Splits:
        """The same pairs with masks elsewhere."""
        by_split = {part.split: part for part in pairing.parts}
        parts = {split: by_split[part.split] for split, part in self.parts.items()}
        names: dict[str, Sequence[Pair]] = {}
        for split, pairs in self.names.items():
            chosen = {pair.name for pair in pairs}
            names[split] = [pair for pair in parts[split].pairs if pair.name in chosen]
        return replace(self, parts=parts, names=names)


def make_splits(pairing: Pairing, share: float, seed: int, group_by: str | None) -> Splits:
    """The splits of the folders; where none is for the validation, a share of the training images.

    Args:
        pairing: The pairs.
        share: That share.
        seed: Of the draw.
        group_by: What belongs together; see `groups_by`. None looks for counters.

    Raises:
        DataError: If there are no training images.
        ConfigError: If they cannot be split so.
    """
    parts = {part.split or 'train': part for part in pairing.parts}
    if 'train' not in parts:
        raise DataError(
            f'there are pairs for {", ".join(parts)}, and none to train on: expected a folder '
            'train in both, or no folders of splits'
        )
    names: dict[str, Sequence[Pair]] = {split: part.pairs for split, part in parts.items()}
    if 'val' in parts:
        order = {s: names[s] for s in SPLITS if s in names}
        counts = ', '.join(f'{len(pairs)} {split}' for split, pairs in order.items())
        return Splits(parts, order, (f'splits by folder: {counts}',))
    pairs = parts['train'].pairs
    stems = [pair.name for pair in pairs]
    groups, said = (
        (groups_by(stems, group_by), '') if group_by is not None else detect_groups(stems)
    )
    drawn = split_by_share(groups, share, seed)
    names['train'] = [pair for pair, val in zip(pairs, drawn, strict=True) if not val]
    names['val'] = [pair for pair, val in zip(pairs, drawn, strict=True) if val]
    parts['val'] = parts['train']
    order = {split: names[split] for split in SPLITS if split in names}
    lines = [
        f'split by share: {len(names["train"])} train, {len(names["val"])} val (seed {seed}, '
        f'--val-share {share:g})'
    ]
    if said:
        lines.append(
            f'  {said} are kept together, as images of one scene are too alike to test on; '
            "--group-by '' splits single images, --group-by REGEX other groups"
        )
    return Splits(parts, order, tuple(lines))


def sources_of(
    pairing: Pairing, splits: Splits
) -> tuple[dict[str, Sequence[SplitFiles]], dict[str, list[str]]]:
    """The data sets of each split, and the lists that they need.

    Returns:
        One source for all pairs of a split that end alike, and the lines of each list by its name.
    """
    sources: dict[str, Sequence[SplitFiles]] = {}
    lists: dict[str, list[str]] = {}
    for split, pairs in splits.names.items():
        part, found = splits.parts[split], []
        endings = sorted({(pair.image_suffix, pair.mask_suffix) for pair in pairs})
        for position, (image_suffix, mask_suffix) in enumerate(endings, 1):
            names = [
                p.name
                for p in pairs
                if (p.image_suffix, p.mask_suffix) == (image_suffix, mask_suffix)
            ]
            listed = ''
            if set(names) != _found_by_mmseg(part.images, image_suffix):
                listed = f'{split}{f"_{position}" if len(endings) > 1 else ""}.txt'
                lists[listed] = names
            found.append(
                SplitFiles(
                    images=_below(part.images, pairing.images),
                    masks=_below(part.masks, pairing.masks),
                    image_suffix=image_suffix,
                    mask_suffix=mask_suffix,
                    listed=listed,
                    count=len(names),
                )
            )
        sources[split] = found
    return sources, lists


def _below(folder: Path, root: Path) -> str:
    relative = folder.relative_to(root).as_posix()
    return '' if relative == '.' else relative


def _found_by_mmseg(folder: Path, suffix: str) -> set[str]:
    """Names, without suffix, that mmseg's data set finds in a folder that no list restricts."""
    found = set()
    for here, _, files in os.walk(folder, followlinks=True):
        for name in files:
            if name.endswith(suffix) and not name.startswith('.'):
                path = (Path(here) / name).relative_to(folder).as_posix()
                found.add(path.removesuffix(suffix))
    return found
