"""What was seen of a user's files, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from cdra_mm.data.own.labels import Meaning, written
from cdra_mm.data.own.looking import LAYOUTS, Seen
from cdra_mm.data.own.pairing import Pairing
from cdra_mm.spelling import first_of

__all__ = ['NAMED', 'class_lines', 'seen_lines', 'report_pairing']

NAMED = 10  # files that are named before the rest is only counted
TWELVE_BITS = 4096


def report_pairing(pairing: Pairing, tell: Callable[[str], Any]) -> None:
    """Tells what was paired, how, and what was left out."""
    for part in pairing.parts:
        endings = Counter((pair.image_suffix, pair.mask_suffix) for pair in part.pairs)
        names = ', '.join(f'{n} of *{i} with *{m}' for (i, m), n in endings.most_common())
        tell(f'{part.split or "all"}: {len(part.pairs)} pairs ({names})')
        for what, other, lone, root in (
            ('image', 'mask', part.lone_images, part.images),
            ('mask', 'image', part.lone_masks, part.masks),
        ):
            if lone:
                listed = first_of((root / name for name in lone), NAMED)
                tell(f'  {len(lone)} {what}s without {other} are left out: {listed}')
    for note in pairing.notes:
        tell(f'  {note}')


def seen_lines(seen: Seen) -> list[str]:
    """Sizes and layouts of images and masks."""
    sizes = seen.sizes.most_common()
    lines = [f'sizes: {first_of((f"{w} x {h} ({n})" for (w, h), n in sizes), 3)}']
    for mode, count in seen.modes.most_common():
        channels, bits = LAYOUTS.get(mode, (len(mode), 8))
        kind = {1: 'grey', 2: 'grey with transparency', 4: 'colour with a fourth channel'}
        what = kind.get(channels, 'colour')
        lines.append(f'images: {count} of {bits} bits, {what}')
        if channels == 1:
            lines.append('  they are read as three equal channels')
        if bits == 16:
            lines.append(
                '  OpenMMLab reads their upper 8 bits'
                + (
                    f', and their largest number is {seen.brightest}: they would be nearly black; '
                    'scale them up to 65535, or down into 8 bits, first'
                    if (seen.brightest or 0) < TWELVE_BITS
                    else ''
                )
            )
    lines.append(f'masks: {", ".join(f"{n} stored as {m}" for m, n in seen.mask_modes.items())}')
    return lines


def class_lines(seen: Seen, meaning: Meaning) -> list[str]:
    """A table of the values in the masks and what they mean."""
    total = seen.pixels_with.total()
    lines = ['value      share  images  means']
    numbers = all(isinstance(value, int) for value in seen.pixels_with)
    for value in sorted(seen.pixels_with, key=None if numbers else written):
        number = meaning.ids.get(value)
        name = 'ignored' if number is None else f'{number} {meaning.classes[number]}'
        share = f'{100 * seen.pixels_with[value] / total:.2f} %'
        lines.append(f'{written(value):<8} {share:>7}  {seen.images_with[value]:>6}  {name}')
    return lines
