"""What the user says of a new config, and the questions for what is left open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cdra_mm.data.own.labels import interpret
from cdra_mm.data.own.looking import Seen
from cdra_mm.errors import ConfigError

from .models import ModelPart, find_model

__all__ = [
    'DEFAULT_BATCH',
    'DEFAULT_BUDGET',
    'Ask',
    'NewConfigOptions',
    'ask_missing',
    'check_numbers',
    'model_of',
]

DEFAULT_BACKBONE, DEFAULT_HEAD = 'dinov2-base', 'linear'
DEFAULT_BATCH, DEFAULT_BUDGET = 8, 0.5

Ask = Callable[[str, str], str]
"""Asks the user a question with a default answer."""


@dataclass(frozen=True)
class NewConfigOptions:
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
    command: str = 'cdra new'


def model_of(wanted: NewConfigOptions) -> ModelPart:
    """The model that is wanted; see `find_model`."""
    return find_model(
        wanted.backbone or DEFAULT_BACKBONE, wanted.head or DEFAULT_HEAD, wanted.weights
    )


def ask_missing(wanted: NewConfigOptions, seen: Seen, ask: Ask | None) -> NewConfigOptions:
    """What was left open, as the user answers."""
    if ask is None:
        return wanted
    changes: dict[str, Any] = {}
    if wanted.ignore is None:
        changes['ignore'] = ask('values that are ignored (Enter: 255 where it occurs)', '').split()
    if wanted.classes is None:
        values = interpret(seen, (), changes.get('ignore') or wanted.ignore or ())
        names = ' '.join(values.classes)
        changes['classes'] = ask('names of the classes in this order', names).split()
    if wanted.backbone is None and not wanted.weights:
        changes['backbone'] = ask('backbone', DEFAULT_BACKBONE)
    if wanted.head is None:
        changes['head'] = ask('head', DEFAULT_HEAD)
    wanted = replace(wanted, **changes)
    model = model_of(wanted)
    questions: tuple[tuple[str, str, float, type[int] | type[float]], ...] = (
        ('crop', 'side of the crops in pixels', model.size, int),
        ('batch_size', 'images a step', DEFAULT_BATCH, int),
        ('budget', 'percent of the backbone that is trained', DEFAULT_BUDGET, float),
    )
    for name, question, default, kind in questions:
        if getattr(wanted, name) is None:
            answer = ask(question, str(default))
            try:
                number: dict[str, Any] = {name: kind(answer)}
            except ValueError:
                raise ConfigError(f'{question}: {answer!r} is no number') from None
            wanted = replace(wanted, **number)
    check_numbers(wanted)
    return wanted


def check_numbers(wanted: NewConfigOptions) -> None:
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
