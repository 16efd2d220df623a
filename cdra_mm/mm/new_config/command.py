"""From two folders to a config that trains: look, ask, write, try."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cdra_mm.core import ConfigError, DataError, write_folder, write_text
from cdra_mm.data.own.conversion import check_new_folder, convert_masks
from cdra_mm.data.own.labels import Meaning, interpret, written
from cdra_mm.data.own.looking import LAYOUTS, Seen, look_at
from cdra_mm.data.own.pairing import Pairing, find_pairs
from cdra_mm.progress import logged_progress

from .listing import Splits, make_splits, sources_of
from .models import ModelPart, find_model
from .text import Facts, config_text
from .verification import verify_config

__all__ = ['Wanted', 'new_config']

NAMED = 10  # files that are named before the rest is only counted
DEFAULT_BACKBONE, DEFAULT_HEAD = 'dinov2-base', 'linear'
DEFAULT_BATCH, DEFAULT_BUDGET = 8, 0.5
TWELVE_BITS = 4096

Ask = Callable[[str, str], str]
"""Asks the user a question with a default answer."""


@dataclass(frozen=True)
class Wanted:
    """What the user says; None is asked for, or decided.

    Attributes:
        images: Folder of the images.
        masks: Folder of the masks.
        out: The config to write.
        classes: Names of the classes, or ``name=value``.
        ignore: Values that are ignored.
        backbone: A shipped backbone.
        weights: A weight file instead.
        head: A head.
        crop: Side of the crops in pixels.
        short_side: Short side that images are brought to, in pixels.
        batch_size: Images a step.
        iterations: Steps.
        budget: Share of the backbone that is trained, in percent.
        val_share: Share of the training images for the validation.
        seed: Of that draw, and of the run.
        group_by: Regular expression; see `splitting.groups_by`. None looks for counters.
        image_suffix: See `find_pairs`.
        mask_suffix: Likewise.
        convert: New folder for converted masks.
        force: Whether the config may be replaced.
        command: The command line, for the config's docstring.
    """

    images: Path
    masks: Path
    out: Path
    classes: Sequence[str] | None = None
    ignore: Sequence[str] | None = None
    backbone: str | None = None
    weights: str = ''
    head: str | None = None
    crop: int | None = None
    short_side: int | None = None
    batch_size: int | None = None
    iterations: int = 4000
    budget: float | None = None
    val_share: float = 0.2
    seed: int = 0
    group_by: str | None = None
    image_suffix: str = ''
    mask_suffix: str = ''
    convert: Path | None = None
    force: bool = False
    command: str = 'tools/new_config.py'


def new_config(
    wanted: Wanted, *, tell: Callable[[str], Any] = print, ask: Ask | None = None
) -> Path:
    """Writes a config for a folder of images and a folder of masks, and tries it.

    Args:
        wanted: What the user says.
        tell: Takes a line of what is seen and done.
        ask: Asks for what `wanted` leaves open; None takes the defaults.

    Returns:
        The config.

    Raises:
        CDRAError: If the files cannot be used so; nothing is written then.
    """
    _check_out(wanted)
    if ask is None:
        _numbers_of(wanted)
    pairing = find_pairs(
        wanted.images,
        wanted.masks,
        image_suffix=wanted.image_suffix,
        mask_suffix=wanted.mask_suffix,
    )
    if wanted.convert is not None:
        check_new_folder(wanted.convert, pairing)
    _tell_pairing(pairing, tell)
    seen = _look(pairing, tell)
    wanted = _answered(wanted, seen, ask)
    meaning = interpret(seen, wanted.classes or (), wanted.ignore or ())
    for line in (*_seen_lines(seen), *_class_lines(seen, meaning), *meaning.notes):
        tell(line)
    model = find_model(
        wanted.backbone or DEFAULT_BACKBONE, wanted.head or DEFAULT_HEAD, wanted.weights
    )
    splits = make_splits(pairing, wanted.val_share, wanted.seed, wanted.group_by)
    for line in splits.lines:
        tell(line)
    facts = _facts(wanted, seen, meaning, model)
    if meaning.rewrite and wanted.convert is None:
        raise DataError(
            f'{meaning.rewrite}: OpenMMLab reads one class id a pixel, so they have to be written '
            'anew; --convert-masks NEW_FOLDER does that into a new folder and leaves yours alone'
        )
    made: list[Path] = []
    try:
        if meaning.rewrite and wanted.convert is not None:
            made.append(wanted.convert)
            moved = convert_masks(pairing, wanted.convert, meaning.ids, meaning.ignored)
            tell(f'{sum(len(part.pairs) for part in moved.parts)} masks written: {wanted.convert}')
            splits = splits.moved(moved)
            facts = replace(facts, masks=str(wanted.convert.resolve()))
            pairing = moved
        elif wanted.convert is not None:
            tell('--convert-masks: the masks are read as they are, so nothing is converted')
        _write(wanted, facts, pairing, splits, made)
    except BaseException:
        for path in made:  # none of it was there before
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
    return wanted.out


def _write(
    wanted: Wanted, facts: Facts, pairing: Pairing, splits: Splits, made: list[Path]
) -> None:
    """Lists and config; the config gets its name once it was tried."""
    sources, lists = sources_of(pairing, splits)
    facts = replace(facts, splits=sources)
    folder = wanted.out.with_name(facts.lists)
    if lists:

        def write_lists(temporary: Path) -> None:
            for name, lines in lists.items():
                (temporary / name).write_text('\n'.join(lines) + '\n', encoding='utf-8')

        if not folder.exists():
            made.append(folder)
        write_folder(folder, write_lists)
    trial = wanted.out.with_name(f'{wanted.out.stem}_{os.getpid()}_trial.py')
    made.append(trial)
    text = config_text(facts)
    write_text(trial, text)
    verify_config(trial, {split: len(pairs) for split, pairs in splits.names.items()})
    made.remove(trial)
    os.replace(trial, wanted.out)


def _check_out(wanted: Wanted) -> None:
    out = wanted.out
    if out.suffix != '.py':
        raise ConfigError(f'{out} is no name for a config: expected one that ends in .py')
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ConfigError(f'{out.parent} is no folder that can be written to: make it first')
    if out.is_dir():
        raise ConfigError(f'{out} is a folder: name a file')
    for path in (out, out.with_name(f'{out.stem}_lists')):
        if path.exists() and not wanted.force:
            raise ConfigError(f'{path} exists: name another config, or replace it with --force')


def _look(pairing: Pairing, tell: Callable[[str], Any]) -> Seen:
    """Every file opened; what cannot be used is named."""
    pairs = [(part.image(p), part.mask(p)) for part in pairing.parts for p in part.pairs]
    seen = Seen()
    show = logged_progress('looking', tell, unit='pairs', parts=2)
    for look in look_at(pairs, len(pairs), show):
        seen.add(look)
    if seen.faults:
        for fault in seen.faults[:NAMED]:
            tell(str(fault))
        rest = len(seen.faults) - 1
        raise DataError(
            f'{seen.faults[0]}{f" and {rest} more files are wrong" if rest else ""}: mend or '
            'remove them, and run the command again'
        )
    deep = [mode for mode in seen.modes if mode in ('F', 'I')]
    if deep:
        raise DataError(
            f'{seen.modes[deep[0]]} images have numbers of 32 bits (mode {deep[0]}): expected 8 or '
            '16 bits a channel; scale them into 8 bits first'
        )
    return seen


def _tell_pairing(pairing: Pairing, tell: Callable[[str], Any]) -> None:
    for part in pairing.parts:
        endings = Counter((pair.image_suffix, pair.mask_suffix) for pair in part.pairs)
        names = ', '.join(f'{n} of *{i} with *{m}' for (i, m), n in endings.most_common())
        tell(f'{part.split or "all"}: {len(part.pairs)} pairs ({names})')
        for what, other, lone, root in (
            ('image', 'mask', part.lone_images, part.images),
            ('mask', 'image', part.lone_masks, part.masks),
        ):
            if lone:
                listed = ', '.join(str(root / name) for name in lone[:NAMED])
                rest = f' and {len(lone) - NAMED} more' if len(lone) > NAMED else ''
                tell(f'  {len(lone)} {what}s without {other} are left out: {listed}{rest}')
    for note in pairing.notes:
        tell(f'  {note}')


def _seen_lines(seen: Seen) -> list[str]:
    sizes = seen.sizes.most_common()
    named = ', '.join(f'{w} x {h} ({n})' for (w, h), n in sizes[:3])
    lines = [f'sizes: {named}{f" and {len(sizes) - 3} more" if len(sizes) > 3 else ""}']
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


def _class_lines(seen: Seen, meaning: Meaning) -> list[str]:
    total = seen.pixels_with.total()
    lines = ['value      share  images  means']
    numbers = all(isinstance(value, int) for value in seen.pixels_with)
    for value in sorted(seen.pixels_with, key=None if numbers else written):
        number = meaning.ids.get(value)
        name = 'ignored' if number is None else f'{number} {meaning.classes[number]}'
        share = f'{100 * seen.pixels_with[value] / total:.2f} %'
        lines.append(f'{written(value):<8} {share:>7}  {seen.images_with[value]:>6}  {name}')
    return lines


def _answered(wanted: Wanted, seen: Seen, ask: Ask | None) -> Wanted:
    """What was left open, as the user answers."""
    if ask is None:
        return wanted
    changes: dict[str, Any] = {}
    if wanted.ignore is None:
        changes['ignore'] = ask('values that are ignored (Enter: 255 where it occurs)', '').split()
    if wanted.classes is None:
        values = interpret(seen, (), changes.get('ignore') or wanted.ignore or ())
        default = ' '.join(values.classes)
        changes['classes'] = ask('names of the classes in this order', default).split()
    if wanted.backbone is None and not wanted.weights:
        changes['backbone'] = ask('backbone', DEFAULT_BACKBONE)
    if wanted.head is None:
        changes['head'] = ask('head', DEFAULT_HEAD)
    wanted = replace(wanted, **changes)
    model = find_model(
        wanted.backbone or DEFAULT_BACKBONE, wanted.head or DEFAULT_HEAD, wanted.weights
    )
    for name, question, default, kind in (
        ('crop', 'side of the crops in pixels', model.size, int),
        ('batch_size', 'images a step', DEFAULT_BATCH, int),
        ('budget', 'percent of the backbone that is trained', DEFAULT_BUDGET, float),
    ):
        if getattr(wanted, name) is None:
            answer = ask(question, str(default))
            try:
                wanted = replace(wanted, **{name: kind(answer)})
            except ValueError:
                raise ConfigError(f'{question}: {answer!r} is no number') from None
    _numbers_of(wanted)
    return wanted


def _numbers_of(wanted: Wanted) -> None:
    """Refuses numbers that no run can have."""
    for name, least in (('crop', 1), ('short_side', 1), ('batch_size', 1), ('iterations', 1)):
        value = getattr(wanted, name)
        if value is not None and value < least:
            raise ConfigError(f'--{name.replace("_", "-")} {value}: expected {least} or more')
    if wanted.budget is not None and not 0 < wanted.budget <= 100:
        raise ConfigError(f'--budget {wanted.budget}: expected percent, above 0 and at most 100')
    if (wanted.batch_size or DEFAULT_BATCH) < 2 and wanted.head == 'upernet':
        raise ConfigError('--batch-size 1: the batch norm of UPerNet needs two images a step')
    if not 0 < wanted.val_share < 1:
        raise ConfigError(f'--val-share {wanted.val_share}: expected a share such as 0.2')


def _facts(wanted: Wanted, seen: Seen, meaning: Meaning, model: ModelPart) -> Facts:
    crop = wanted.crop or model.size
    if crop % model.step:
        below = crop // model.step * model.step
        near = f'{below} or {below + model.step}' if below else f'{model.step}'
        raise ConfigError(
            f'--crop {crop} is no multiple of the patch size {model.step} of {model.name}: take '
            f'{near}'
        )
    sides = sorted(min(size) for size, count in seen.sizes.items() for _ in range(count))
    median = sides[len(sides) // 2]
    # Not below a crop, which would be padded, and not so far above it that a crop shows little.
    short_side = wanted.short_side or min(max(median, crop), 2 * crop)
    (size, number), *_ = seen.sizes.most_common(1)
    total = seen.sizes.total()
    return Facts(
        title=f'{wanted.out.stem}: CDRA of {model.name}.',
        command=wanted.command,
        config=str(wanted.out),
        images=str(wanted.images.resolve()),
        masks=str(wanted.masks.resolve()),
        lists=f'{wanted.out.stem}_lists',
        splits={},
        meaning=meaning,
        model=model,
        crop=crop,
        short_side=short_side,
        batch_size=wanted.batch_size or DEFAULT_BATCH,
        iterations=wanted.iterations,
        budget_percent=wanted.budget or DEFAULT_BUDGET,
        seed=wanted.seed,
        workers=min(4, os.cpu_count() or 1),
        remarks=[f'{total} pairs; {number} of the images are {size[0]} x {size[1]} pixels.'],
    )
