"""A frozen base is brought back, and compared with what a run has.

Each of the ways to load it (`base_source`) is replayed as it ran, with the backbone's own
conversions (resized position embeddings, renamed keys).

A checkpoint names its base too, and whoever made the file chose the name. An address in it is
followed only where the config names the same one; a path, only to a regular file.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.runner.checkpoint import load_state_dict
from torch import Tensor, nn

from cdra_mm.errors import CheckpointError

from ..compatibility import load_checkpoint
from ..host.model_patches import initialised_again
from .base_source import BaseSource, own_source

__all__ = ['check_loaded', 'is_replaying', 'load_base', 'reproduced_names']


def reproduced_names(backbone: nn.Module, source: BaseSource | None) -> set[str]:
    """Names of the state that the source brings back bit for bit into an empty backbone."""
    if source is None:
        return set()
    expected = backbone.state_dict(keep_vars=True)
    # Not a copy that is then emptied: of the weights nothing is wanted but their place.
    places = {id(t): _emptied(t) for t in expected.values() if isinstance(t, Tensor)}
    empty = copy.deepcopy(backbone, places).cpu()
    _replay(empty, source)
    return {
        name
        for name, tensor in empty.state_dict().items()
        if torch.equal(tensor, expected[name].cpu())
    }


def _emptied(tensor: Tensor) -> Tensor:
    """A tensor on the CPU that no base holds: what is still there afterwards was not loaded.

    Tables of whole numbers (indices of relative positions) come with the backbone, not with a base.
    """
    values = tensor.detach()
    if values.is_floating_point() or values.dim() == 0:
        what = float('nan') if values.is_floating_point() else -12345
        emptied = torch.full_like(values, what, device='cpu')
    else:
        emptied = values.cpu().clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(emptied, requires_grad=tensor.requires_grad)
    return emptied


def check_loaded(backbone: nn.Module, source: BaseSource | None, reproduced: set[str]) -> list[str]:
    """Refuses a pretrained file that has nothing for this backbone; mmengine only warns.

    Args:
        backbone: The plain backbone.
        source: Where its weights are said to come from.
        reproduced: See `reproduced_names`.

    Returns:
        Names of the parameters that the source leaves as they were initialised.

    Raises:
        CheckpointError: If no matrix of the backbone comes from the source.
    """
    if source is None:
        return []
    matrices = {name for name, parameter in backbone.named_parameters() if parameter.dim() > 1}
    if matrices and not matrices & reproduced:
        raise CheckpointError(
            f'{source.describe()} brings 0 of the {len(matrices)} weight matrices of '
            f'{type(backbone).__name__}: it belongs to another architecture, or its names need '
            'another prefix'
        )
    return [name for name, _ in backbone.named_parameters() if name not in reproduced]


def load_base(
    backbone: nn.Module,
    source: BaseSource,
    holds: Callable[[], bool],
    named: tuple[BaseSource, ...] = (),
) -> str:
    """Tries what the config names, then the source, until `holds()`.

    Args:
        backbone: The backbone.
        source: The base as a checkpoint names it; see above for when it is followed.
        holds: Whether the backbone has the right weights.
        named: What the config names beside the backbone's own ``init_cfg``.

    Returns:
        What went wrong, for the message of the caller; '' on success.
    """
    own = own_source(backbone)
    # The file may have been moved since: the config then names where it is now.
    of_config = [*([own] if own is not None else []), *named]
    failures = []
    for candidate in dict.fromkeys([*of_config, source]):
        if candidate not in of_config:
            fault = _why_not_followed(candidate, of_config)
            if fault:
                failures.append(fault)
                continue
        try:
            _replay(backbone, candidate)
        except Exception as error:  # whatever the file system or a download may raise
            failures.append(f'{candidate.path}: {type(error).__name__}: {error}')
            continue
        if holds():
            return ''
        failures.append(f'{candidate.path} holds other weights')
    return '; '.join(failures)


def is_replaying(backbone: nn.Module) -> bool:
    """Whether what a backbone is loading right now is its base, brought back."""
    return bool(backbone.__dict__.get('_cdra_replaying'))


def _why_not_followed(source: BaseSource, of_config: list[BaseSource]) -> str:
    """Why a base that only a file names is left alone; '' where it is not."""
    paths = list(dict.fromkeys(base.path for base in of_config))
    if source.path in paths:
        return ''
    if source.is_address:
        names = ' and '.join(map(repr, paths)) if paths else 'no base'
        return (
            f'{source.path} was not fetched: the config names {names}, and an address in a file is '
            'followed only where the config names it too (if you trust it, put it into '
            'model.backbone.init_cfg)'
        )
    path = Path(source.path).expanduser()
    try:
        what = '' if path.is_file() else 'is no regular file' if path.exists() else 'does not exist'
    except (OSError, ValueError) as error:
        what = f'cannot be looked for ({error})'
    return f'{source.path} {what}' if what else ''


def _replay(backbone: nn.Module, source: BaseSource) -> None:
    with _muted(), _replaying(backbone), torch.random.fork_rng([]):
        if source.kind == 'init_cfg':
            _replay_init_cfg(backbone, source)
            return
        loaded = load_checkpoint(source.path)
        state: dict[str, Tensor] = loaded.get('state_dict', loaded)
        prefix = source.prefix
        state = {
            key.removeprefix('module.').removeprefix(prefix): value
            for key, value in state.items()
            if key.removeprefix('module.').startswith(prefix)
        }
        load_state_dict(backbone, state, strict=False)


def _replay_init_cfg(backbone: BaseModule, source: BaseSource) -> None:
    init_cfg = {'type': 'Pretrained', 'checkpoint': source.path}
    if source.prefix:
        init_cfg['prefix'] = source.prefix
    with initialised_again(backbone, init_cfg):
        backbone.init_weights()


@contextmanager
def _replaying(backbone: nn.Module) -> Iterator[None]:
    backbone.__dict__['_cdra_replaying'] = True
    try:
        yield
    finally:
        del backbone.__dict__['_cdra_replaying']


@contextmanager
def _muted() -> Iterator[None]:
    """A replay reports missing keys of no interest to anybody."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
