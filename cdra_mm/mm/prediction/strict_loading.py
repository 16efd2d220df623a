"""A checkpoint in the model of a config, wholly or not at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS
from torch import nn

from cdra_mm.errors import CheckpointError, ConfigError

__all__ = ['class_names', 'dataset_of', 'load_weights']


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], path: str) -> None:
    """Loads a checkpoint; OpenMMLab's inferencers would only warn of what does not fit.

    Args:
        model: The model; with the loader of `CDRABackbone` in it, an adapted checkpoint fits.
        checkpoint: What the file holds.
        path: The file, for messages.

    Raises:
        CheckpointError: If a weight of the model is not in it, or has another shape.
    """
    state = checkpoint.get('state_dict', checkpoint)
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        # torch lists every key, one a line, after a heading.
        reasons = str(error).splitlines()[1:] or [str(error)]
        missing, unexpected = [reasons[0].strip()[:300], *reasons[1:]], []
    if missing:
        more = f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''
        raise CheckpointError(
            f'{path} does not fit the {type(model).__name__} of the config: {missing[0]}{more}'
            f'{"" if " " in missing[0] else " is not in it"}; use the config it was trained with'
        )
    if unexpected:
        MMLogger.get_current_instance().warning(
            f'{path}: {len(unexpected)} weights have no place in the model (first: {unexpected[0]})'
        )


def dataset_of(cfg: Config) -> Mapping[str, Any]:
    """The config of the test data, the first where there are several.

    Raises:
        ConfigError: If there is none with a pipeline: it says how an image is made ready.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    while isinstance(dataset, Mapping) and not dataset.get('pipeline'):
        inner = dataset.get('dataset') or dataset.get('datasets')
        dataset = inner[0] if isinstance(inner, list | tuple) and inner else inner
    if not isinstance(dataset, Mapping):
        raise ConfigError(
            'the config has no test_dataloader.dataset with a pipeline: it says how an image is '
            'made ready for the model'
        )
    return dataset


def class_names(
    cfg: Config, meta: Mapping[str, Any], num_classes: int
) -> tuple[list[str], Sequence[Sequence[int]] | None]:
    """Names and colours of the classes: the checkpoint's, the config's, or the data set's own.

    Args:
        cfg: The config.
        meta: ``dataset_meta`` of the checkpoint; may be empty.
        num_classes: How many there are.

    Returns:
        The names, numbers where none are known, and the palette, None likewise.
    """
    dataset = dataset_of(cfg)
    kind = dataset.get('type')
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
            kind = registry.get(kind)
    own = getattr(kind, 'METAINFO', None) or {}
    names: list[str] = []
    for known in (meta, dataset.get('metainfo') or {}, own):
        found = known.get('classes')
        if isinstance(found, list | tuple) and len(found) == num_classes:
            names = [str(name) for name in found]
            palette = known.get('palette')
            if palette is not None and len(palette) == num_classes:
                return names, palette
            break
    return names or [str(number) for number in range(num_classes)], None
