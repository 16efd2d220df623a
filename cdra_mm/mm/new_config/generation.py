"""From two folders to a config that trains: look, ask, write, try."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cdra_mm.data.own.labels import Meaning, interpret
from cdra_mm.data.own.looking import Seen, look_at
from cdra_mm.data.own.mask_conversion import check_new_folder, convert_masks
from cdra_mm.data.own.pairing import Pairing, find_pairs
from cdra_mm.errors import ConfigError, DataError
from cdra_mm.progress import logged_progress
from cdra_mm.storage import write_folder, write_text

from .content import ConfigContent
from .messages import NAMED, class_lines, report_pairing, seen_lines
from .models import ModelPart
from .options import (
    DEFAULT_BATCH,
    DEFAULT_BUDGET,
    Ask,
    NewConfigOptions,
    ask_missing,
    check_numbers,
    model_of,
)
from .split_lists import Splits, make_splits, sources_of
from .text import config_text
from .verification import verify_config

__all__ = ['NewConfigOptions', 'new_config']


def new_config(
    wanted: NewConfigOptions, *, tell: Callable[[str], Any] = print, ask: Ask | None = None
) -> Path:
    """Writes a config for a folder of images and a folder of masks, and tries it.

    Args:
        wanted: What the user says.
        tell: Takes a line of what is seen and done.
        ask: Asks for what `wanted` leaves open; None takes the defaults.

    Raises:
        CDRAError: If the files cannot be used so; nothing is written then.
    """
    _check_out(wanted)
    if ask is None:
        check_numbers(wanted)
    pairing = find_pairs(
        wanted.images,
        wanted.masks,
        image_suffix=wanted.image_suffix,
        mask_suffix=wanted.mask_suffix,
    )
    if wanted.convert is not None:
        check_new_folder(wanted.convert, pairing)
    report_pairing(pairing, tell)
    seen = _look(pairing, tell)
    wanted = ask_missing(wanted, seen, ask)
    meaning = interpret(seen, wanted.classes or (), wanted.ignore or ())
    for line in (*seen_lines(seen), *class_lines(seen, meaning), *meaning.notes):
        tell(line)
    model = model_of(wanted)
    splits = make_splits(pairing, wanted.val_share, wanted.seed, wanted.group_by)
    for line in splits.lines:
        tell(line)
    content = _content(wanted, seen, meaning, model)
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
            content = replace(content, masks=str(wanted.convert.resolve()))
            pairing = moved
        elif wanted.convert is not None:
            tell('--convert-masks: the masks are read as they are, so nothing is converted')
        for line in _write(wanted, content, pairing, splits, made):
            tell(f'look at this: {line}')
    except BaseException:
        for path in made:  # none of it was there before
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
    return wanted.out


def _write(
    wanted: NewConfigOptions,
    content: ConfigContent,
    pairing: Pairing,
    splits: Splits,
    made: list[Path],
) -> list[str]:
    """Writes lists and config, which gets its name once it was tried. Gives what looks odd."""
    sources, lists = sources_of(pairing, splits)
    content = replace(content, splits=sources)
    folder = wanted.out.with_name(content.lists)
    if lists:

        def write_lists(temporary: Path) -> None:
            for name, lines in lists.items():
                (temporary / name).write_text('\n'.join(lines) + '\n', encoding='utf-8')

        if not folder.exists():
            made.append(folder)
        write_folder(folder, write_lists)
    trial = wanted.out.with_name(f'{wanted.out.stem}_{os.getpid()}_trial.py')
    made.append(trial)
    text = config_text(content)
    write_text(trial, text)
    odd = verify_config(trial, {split: len(pairs) for split, pairs in splits.names.items()})
    made.remove(trial)
    os.replace(trial, wanted.out)
    return odd


def _check_out(wanted: NewConfigOptions) -> None:
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


def _content(
    wanted: NewConfigOptions, seen: Seen, meaning: Meaning, model: ModelPart
) -> ConfigContent:
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
    return ConfigContent(
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
