"""From a checkpoint with adapters to a plain one, with the proof that nothing changed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import BaseModel, BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from cdra_mm.core import adapters, freeze_rest, merge_adapters, remove_adapters
from cdra_mm.errors import CheckpointError
from cdra_mm.spelling import first_of

from ..backbone import PREFIX, attach_loader, find_backbone
from ..checkpoints.base_source import named_bases
from ..checkpoints.record import Record, read_record
from ..checkpoints.small_base import keep_full
from ..compatibility import load_checkpoint
from ..divergence import refuse_diverged
from ..launch import plain_config
from ..packages import set_default_scope
from .outputs import difference, image_size, outputs_of, random_image

__all__ = ['Adapted', 'Merged', 'build_backbone', 'merge_checkpoint', 'open_adapted']

# A merged output may differ by rounding: this share of the largest output. In bfloat16 every merged
# weight is rounded to 8 bits, and so is what each layer gives.
TOLERANCE = 1e-3
NARROW = {torch.bfloat16: 5e-2, torch.float16: 5e-3}


@dataclass(frozen=True)
class Adapted:
    """A checkpoint with adapters, loaded into its model.

    Attributes:
        model: The adapted model; its backbone knows its plan.
        backbone: Its backbone.
        config: The config without our hook.
        meta: The checkpoint's ``meta``.
        provenance: Where it comes from, plain types.
    """

    model: BaseModel
    backbone: BaseModule
    config: Config
    meta: Mapping[str, Any]
    provenance: dict[str, Any]

    def random_image(self) -> Tensor:
        """An image of the kind that the model was made for, ``[1, C, H, W]``."""
        return random_image(self.model, image_size(self.config.model, self.backbone))


@dataclass(frozen=True)
class Merged:
    """What `merge_checkpoint` made.

    Attributes:
        checkpoint: ``{'state_dict': ..., 'meta': ...}`` of the plain model.
        model: The plain model that holds it.
        num_adapters: Adapters that were merged.
        image: The random image on which the two models were compared, ``[1, C, H, W]``.
        compared: What was compared: ``'output'``, or ``'feature'`` of backbone and neck.
        why: Why it was features, '' where it was not.
        difference: Largest absolute difference.
        scale: Largest absolute value of what was compared.
    """

    checkpoint: dict[str, Any]
    model: BaseModel
    num_adapters: int
    image: Tensor
    compared: str
    why: str
    difference: float
    scale: float


def open_adapted(cfg: Config, path: str) -> Adapted:
    """Loads a checkpoint with adapters into the model of its config.

    Raises:
        CheckpointError: If the checkpoint has no adapters, or does not fit the config.
    """
    plain = plain_config(cfg)
    set_default_scope(plain)
    loaded = load_checkpoint(path)
    state, record = _adapted_state(loaded, path)
    model = _build(plain.model)
    backbone = attach_loader(find_backbone(model), named_bases(cfg, model))
    keep_full(backbone)  # a merge and an export are of the base itself
    _load(model, state, path)
    refuse_diverged(model, path)
    plan = record.plan if record is not None else None
    if plan is not None:
        freeze_rest(backbone, plan)
    model.eval()
    provenance = _provenance(path, record, len(adapters(backbone)))
    return Adapted(model, backbone, plain, loaded.get('meta', {}), provenance)


def merge_checkpoint(cfg: Config, path: str) -> Merged:
    """Merges the adapters of a checkpoint.

    Returns:
        The plain checkpoint. It was loaded strictly into the plain model, whose
        output on a random image was compared with the adapted model's.

    Raises:
        CheckpointError: If the checkpoint has no adapters, does not fit the
            config, or the outputs differ by more than rounding.
        ConfigError: If the model takes no image of the size that the config says.
    """
    adapted = open_adapted(cfg, path)
    model, image = adapted.model, adapted.random_image()
    before = outputs_of(model, image)
    merge_adapters(adapted.backbone)
    remove_adapters(adapted.backbone)

    stock = _build(adapted.config.model)
    _load(stock, model.state_dict(), path)
    error, scale = difference(before, outputs_of(stock, image, before.kind))
    if not error <= _tolerance(adapted.backbone) * scale:
        raise CheckpointError(
            f'merging changes the {before.kind}s by {error:.3g} (up to {scale:.3g}), more than '
            'rounding can: nothing was written; please report this with the config'
        )
    meta = {key: value for key, value in adapted.meta.items() if key == 'dataset_meta'}
    meta['cfg'] = adapted.config.pretty_text
    meta['cdra_merged'] = adapted.provenance
    checkpoint = {'state_dict': stock.state_dict(), 'meta': meta}
    return Merged(
        checkpoint,
        stock,
        adapted.provenance['num_adapters'],
        image,
        before.kind,
        before.why,
        error,
        scale,
    )


def _tolerance(backbone: nn.Module) -> float:
    """See `TOLERANCE`; that of the least exact type of a backbone."""
    return max(NARROW.get(parameter.dtype, TOLERANCE) for parameter in backbone.parameters())


def _adapted_state(loaded: Any, path: str) -> tuple[dict[str, Tensor], Record | None]:
    """The state dict and its record; refuses what has nothing to merge."""
    state = loaded.get('state_dict') if isinstance(loaded, Mapping) else None
    if not isinstance(state, Mapping):
        raise CheckpointError(f'{path} has no state_dict: it is no checkpoint of an OpenMMLab run')
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    record = read_record(state, PREFIX)
    if any('.cdra.' in f'.{key}' for key in state):
        return state, record
    if record is None:
        raise CheckpointError(f'{path} has no adapters: it is a plain checkpoint already')
    if record.plan is not None and record.plan.num_trainable:
        return state, record
    raise CheckpointError(
        f'{path} was trained with the method {record.method!r}, which has no adapters to merge'
    )


def _build(config: Mapping[str, Any]) -> BaseModel:
    """A model; of a copy, as mmseg writes `pretrained` into the backbone's part of the config."""
    model: BaseModel = MODELS.build(copy.deepcopy(config))
    return model


def build_backbone(cfg: Config) -> BaseModule:
    """The plain backbone of a config, as yet without weights."""
    return attach_loader(find_backbone(_build(cfg.model)))


def _load(model: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Loads a state dict strictly, but for what the model itself throws out (Swin v2 does)."""
    reasons = []
    try:
        result = model.load_state_dict(state, strict=False)
        reasons += [f'it has no {key}' for key in result.missing_keys if key not in state]
        reasons += [f'the model has no {key}' for key in result.unexpected_keys]
    except RuntimeError as error:
        # torch lists what does not fit, one a line, after a heading.
        reasons += str(error).splitlines()[1:] or [str(error)]
    if reasons:
        found = first_of(reason.strip()[:300] for reason in reasons)
        raise CheckpointError(f'{path} does not fit the model of the config: {found}')


def _provenance(path: str, record: Record | None, num_adapters: int) -> dict[str, Any]:
    entries: dict[str, Any] = {'checkpoint': Path(path).name, 'num_adapters': num_adapters}
    if record is not None:
        entries |= {
            'method': record.method,
            'settings': dict(record.settings),
            'base': asdict(record.base) if record.base else None,
            'base_fingerprint': record.fingerprint,
        }
    return entries
