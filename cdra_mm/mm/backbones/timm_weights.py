"""Weight files and timm's hub for a model of timm, wholly or not at all."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable
from types import ModuleType
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from cdra_mm.errors import CheckpointError, ConfigError

from ..checkpoints.record import base_state
from ..weights import read_state_dict

__all__ = ['ADDRESS', 'import_timm', 'load_weights']

ADDRESS = 'timm://'  # before the name of weights on timm's hub
# What training code keeps beside the backbone.
BESIDE = {'mask_token', 'head', 'head_dist', 'lm_head'}


def import_timm() -> ModuleType:
    """timm.

    Raises:
        ConfigError: If it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f'TimmViT needs timm ({error}): pip install timm') from None
    return timm


def load_weights(vit: nn.Module, source: str, prefix: str = '') -> None:
    """Loads pretrained weights into a model of timm.

    timm's own filter translates the names of the publishers (DINOv2, DINOv3, EVA, DeiT III)
    and resizes position embeddings and patch embeddings to the model.

    Args:
        vit: The model, changed in place.
        source: A file, an address, or ``timm://<name>``.
        prefix: Prefix of the model's names in the file.

    Raises:
        CheckpointError: If the weights cannot be had, or a name or shape does not fit; the
            model is then unchanged.
    """
    if source.startswith(ADDRESS):
        state = _fetch(vit, source.removeprefix(ADDRESS))
    else:
        state = read_state_dict(source)
        if prefix:
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        own = {k.removeprefix('vit.'): v for k, v in state.items() if k.startswith('vit.')}
        state = own or state  # a checkpoint of this wrapper
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it leaves out
            state = _filter_of(vit)(dict(state), vit)
    except (AttributeError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{source} does not fit timm's {type(vit).__name__}: {type(error).__name__}: {error}"
        ) from error
    count = _require_fit(vit, state, source)
    vit.load_state_dict(state, strict=False)
    print_log(f'{source}: {count} weights loaded', logger='current')


def _require_fit(vit: nn.Module, state: dict[str, Tensor], source: str) -> int:
    """Refuses a partial match. Gives the number of weights that match."""
    own = base_state(vit)
    # The model was built without what no output depends on: those weights may be there.
    dropped = {name for name, m in vit._modules.items() if m is None or isinstance(m, nn.Identity)}
    dropped |= BESIDE
    wrong = {
        'missing': [name for name in own if name not in state],
        'unexpected': [n for n in state if n not in own and n.partition('.')[0] not in dropped],
        'of another shape': [n for n in own if n in state and own[n].shape != state[n].shape],
    }
    if any(wrong.values()):
        found = ', '.join(f'{len(v)} {k} (first: {v[0]})' for k, v in wrong.items() if v)
        raise CheckpointError(
            f"{source} does not fit timm's {type(vit).__name__} of {len(own)} weights: {found}; "
            'it belongs to another model_name, or its names need another prefix'
        )
    return len(own)


def _filter_of(vit: nn.Module) -> Callable[[dict[str, Any], nn.Module], dict[str, Tensor]]:
    models = import_timm().models
    if isinstance(vit, models.Eva):
        return models.eva.checkpoint_filter_fn
    if isinstance(vit, models.Beit):
        return models.beit.checkpoint_filter_fn
    return functools.partial(models.vision_transformer.checkpoint_filter_fn, adapt_layer_scale=True)


def _fetch(vit: nn.Module, name: str) -> dict[str, Tensor]:
    """The weights of a name as timm's hub has them."""
    timm = import_timm()
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise CheckpointError(
            f'timm has no pretrained weights of the name {name!r}: name one of '
            'timm.list_pretrained(), or a file in init_cfg=dict(type="Pretrained", checkpoint=...)'
        )
    fetched: dict[str, Tensor] = {}

    def keep(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        fetched.update(state.get('state_dict', state.get('model', state)))
        return model.state_dict()

    try:
        timm.models.load_pretrained(vit, config.to_dict(), num_classes=0, filter_fn=keep)
    except Exception as error:  # whatever hubs, proxies and file systems may raise
        raise CheckpointError(
            f'cannot fetch the weights {name} of timm ({type(error).__name__}: {error}); fetch the '
            'file by other means and name it in init_cfg=dict(type="Pretrained", checkpoint=...)'
        ) from error
    if not fetched:
        raise CheckpointError(
            f'the weights {name} of timm are in a format of their own: name a .safetensors or .pth '
            'file in init_cfg=dict(type="Pretrained", checkpoint=...)'
        )
    return fetched
