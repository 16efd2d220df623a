"""What a config takes to score, plan and train, without memory for it (`sizing.estimate`)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from cdra_mm.errors import CDRAError, ConfigError
from cdra_mm.methods import CDRA, Method
from cdra_mm.methods.budgets import Selecting
from cdra_mm.sizing.block_time import time_blocks
from cdra_mm.sizing.estimate import GB, dry_run

from .backbone import find_backbone
from .export.outputs import image_size
from .hook import CDRAHook
from .launch import plain_config
from .packages import set_default_scope

__all__ = ['describe_dry_run']


def describe_dry_run(
    cfg: Config,
    *,
    memory: float,
    batch: int | None = None,
    size: int | None = None,
    blocks: int = 0,
) -> str:
    """Bytes, and with `blocks` seconds, of a config's backbone; nothing is loaded or read.

    Args:
        cfg: The config, prepared.
        memory: Of the GPU, GB.
        batch: Images a step; default: the training loader's.
        size: Side of the images, pixels; default: the config's.
        blocks: Blocks to time for real; 0 for none.

    Raises:
        ConfigError: If the config does not adapt, or its model cannot be built or run without
            memory.
    """
    hook = _hook_of(cfg)
    plain = plain_config(cfg)
    set_default_scope(plain)
    model = _built(plain.model)
    backbone = find_backbone(model)
    height, width = (size, size) if size else _trained_size(plain.model, backbone)
    batch = batch or int((cfg.get('train_dataloader') or {}).get('batch_size') or 1)

    def images(count: int) -> Tensor:
        return torch.empty(count, 3, height, width, device='meta')

    share = _share(hook.method, backbone)
    own = {id(parameter) for parameter in backbone.parameters()}
    beside = sum(p.numel() for p in model.parameters() if id(p) not in own)
    lines = [f'{type(backbone).__name__}, {height} x {width} px, in the type of its weights:', '']
    try:
        measured = ''
        if blocks:
            device = 'cuda' if torch.cuda.is_available() else 'cpu'
            timed = time_blocks(
                backbone, images, blocks=blocks, batch=batch, share=share, device=device
            )
            measured = timed.text(hook.planner.num_samples)
        found = dry_run(backbone, images, batch=batch, share=share, beside=beside)
    except CDRAError:
        raise
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        raise ConfigError(
            f'{type(backbone).__name__} cannot run without memory: it asks for values '
            f'({type(error).__name__}: {str(error).partition(chr(10))[0]}); a dry run takes plain '
            'transformers'
        ) from error
    lines.append(found.text(int(memory * GB)))
    if measured:
        lines += ['', measured]
    return '\n'.join(lines)


def _hook_of(cfg: Config) -> CDRAHook:
    settings = dict((cfg.get('default_hooks') or {}).get('cdra') or {})
    if not settings:
        raise ConfigError(
            'the config adapts nothing, so there is nothing to plan: add '
            "default_hooks = dict(cdra=dict(type='cdra_mm.CDRAHook'))"
        )
    return CDRAHook(**{key: value for key, value in settings.items() if key != 'type'})


def _built(config: Mapping[str, Any]) -> nn.Module:
    """The model on the meta device."""
    try:
        with torch.device('meta'):
            model: nn.Module = MODELS.build(copy.deepcopy(config))
    except CDRAError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise ConfigError(
            f'the model of the config cannot be built without memory ({type(error).__name__}: '
            f'{str(error).partition(chr(10))[0]})'
        ) from error
    return model


def _trained_size(config: Mapping[str, Any], backbone: nn.Module) -> tuple[int, int]:
    """Height and width of the images of a training, pixels."""
    cropped = (config.get('data_preprocessor') or {}).get('size')
    if cropped:  # a backbone may have been made for another size, and resize its positions
        return image_size({'data_preprocessor': {'size': cropped}}, nn.Identity())
    return image_size(config, backbone)


def _share(method: Method, backbone: nn.Module) -> float:
    """The trainable share that a method's budget allows; CDRA's default where it names none."""
    selecting = method if isinstance(method, Selecting) else CDRA()
    params = selecting.budget_on(backbone)['budget_params']
    if params is None:  # a share of what competes: its parameters are known with the plan only
        params = CDRA().budget_on(backbone)['budget_params']
    return float(params) / sum(parameter.numel() for parameter in backbone.parameters())
