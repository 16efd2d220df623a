"""What goes into a new config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cdra_mm.data.own.labels import Meaning

from .models import ModelPart

__all__ = ['ConfigContent', 'SplitFiles']


@dataclass(frozen=True)
class SplitFiles:
    """Images and masks of one split whose names end alike.

    Attributes:
        images: Folder below ``images`` of the config, '' for itself.
        masks: Folder below ``masks``, likewise.
        image_suffix: See `cdra_mm.data.own.pairing.Pair`.
        mask_suffix: Likewise.
        listed: Name of the list of its names, '' where it is all that lies in the folders.
        count: How many pairs.
    """

    images: str
    masks: str
    image_suffix: str
    mask_suffix: str
    listed: str
    count: int


@dataclass(frozen=True)
class ConfigContent:
    """What goes into a config.

    Attributes:
        title: First line of its docstring.
        command: The command line that writes it.
        config: Its own path, for the commands in its docstring.
        images: Folder of the images.
        masks: Folder of the masks.
        lists: Name of the folder of lists beside it.
        splits: The sources of ``train``, ``val`` and ``test``.
        meaning: What the masks mean.
        model: The model without its classes.
        crop: Side of the crops in pixels.
        short_side: Short side that images are brought to.
        batch_size: Images a step.
        iterations: Steps.
        budget_percent: Share of the backbone that is trained.
        seed: Of the run.
        workers: Processes that load images.
        remarks: Lines about the data, for a comment.
    """

    title: str
    command: str
    config: str
    images: str
    masks: str
    lists: str
    splits: dict[str, Sequence[SplitFiles]]
    meaning: Meaning
    model: ModelPart
    crop: int
    short_side: int
    batch_size: int
    iterations: int
    budget_percent: float
    seed: int
    workers: int
    remarks: Sequence[str] = ()
