"""Where a frozen base came from, and how to bring it back.

OpenMMLab loads pretrained weights in three ways: the backbone's own ``init_cfg``,
the model's ``init_cfg``, and ``load_from``. Each is replayed as it ran, with the
backbone's own conversions (resized position embeddings, renamed keys).
"""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from mmengine.runner.checkpoint import CheckpointLoader, load_state_dict
from torch import Tensor, nn

from cdra_mm.core import CheckpointError

__all__ = ['BaseSource', 'check_loaded', 'find_source', 'load_base', 'reproduced_names']


@dataclass(frozen=True)
class BaseSource:
    """How the base weights were loaded.

    Attributes:
        kind: ``'init_cfg'`` (the backbone's own) or ``'checkpoint'`` (of a whole model).
        path: Path or address of the file.
        prefix: Prefix of the backbone's keys in it, '' for none.
    """

    kind: str
    path: str
    prefix: str = ''

    def describe(self) -> str:
        """For messages."""
        return repr(self.path) + (f' (prefix {self.prefix!r})' if self.prefix else '')


def find_source(runner: Runner, model: nn.Module, backbone: nn.Module) -> BaseSource | None:
    """How this run loaded its base weights, None if it did not.

    Args:
        runner: A runner that has loaded its weights.
        model: Its plain model.
        backbone: The backbone in it.
    """
    if runner._load_from is not None and not runner._resume:
        return BaseSource('checkpoint', str(runner._load_from), 'backbone.')
    own = _own_source(backbone)
    if own is not None:
        return own
    whole = _pretrained(getattr(model, 'init_cfg', None))
    if whole is not None:
        prefix = str(whole.get('prefix') or '') + 'backbone.'
        return BaseSource('checkpoint', str(whole['checkpoint']), prefix)
    return None


def _own_source(backbone: nn.Module) -> BaseSource | None:
    init_cfg = _pretrained(getattr(backbone, 'init_cfg', None))
    if init_cfg is None:
        return None
    return BaseSource('init_cfg', str(init_cfg['checkpoint']), str(init_cfg.get('prefix') or ''))


def _pretrained(init_cfg: Any) -> dict[str, Any] | None:
    configs = init_cfg if isinstance(init_cfg, list | tuple) else [init_cfg]
    return next((c for c in configs if isinstance(c, dict) and c.get('type') == 'Pretrained'), None)


def reproduced_names(backbone: nn.Module, source: BaseSource | None) -> set[str]:
    """Names of the state that the source brings back bit for bit into an empty backbone."""
    if source is None:
        return set()
    expected = backbone.state_dict()
    empty = copy.deepcopy(backbone).cpu()
    with torch.no_grad():
        for tensor in empty.state_dict().values():
            # No base holds this: what is still here afterwards was not loaded. Tables of whole
            # numbers (indices of relative positions) come with the backbone, not with a base.
            if tensor.is_floating_point() or tensor.dim() == 0:
                tensor.fill_(float('nan') if tensor.is_floating_point() else -12345)
    _replay(empty, source)
    return {
        name
        for name, tensor in empty.state_dict().items()
        if torch.equal(tensor, expected[name].cpu())
    }


def check_loaded(backbone: nn.Module, source: BaseSource | None, reproduced: set[str]) -> None:
    """Refuses a pretrained file that has nothing for this backbone; mmengine only warns.

    Args:
        backbone: The plain backbone.
        source: Where its weights are said to come from.
        reproduced: See `reproduced_names`.

    Raises:
        CheckpointError: If no matrix of the backbone comes from the source.
    """
    matrices = {name for name, parameter in backbone.named_parameters() if parameter.dim() > 1}
    missing = sorted(matrices - reproduced)
    if source is None or not missing:
        return
    what = f'{source.describe()} brings {len(matrices) - len(missing)} of the {len(matrices)}'
    what += f' weight matrices of {type(backbone).__name__}'
    if len(missing) == len(matrices):
        raise CheckpointError(
            f'{what}: it belongs to another architecture, or its names need another prefix'
        )
    MMLogger.get_current_instance().warning(
        f'{what}; missing are {", ".join(missing[:3])}{" ..." if len(missing) > 3 else ""}: they '
        'start at random and are stored in checkpoints'
    )


def load_base(backbone: nn.Module, source: BaseSource, holds: Callable[[], bool]) -> str:
    """Tries the backbone's own init_cfg, then the source, until `holds()`.

    Returns:
        What went wrong, for the message of the caller; '' on success.
    """
    own = _own_source(backbone)
    failures = []
    # The file may have been moved since: the config then names where it is now.
    for candidate in [source] if own in (None, source) else [own, source]:
        try:
            _replay(backbone, candidate)
        except Exception as error:  # whatever the file system or a download may raise
            failures.append(f'{candidate.path}: {type(error).__name__}: {error}')
            continue
        if holds():
            return ''
        failures.append(f'{candidate.path} holds other weights')
    return '; '.join(failures)


def _replay(backbone: nn.Module, source: BaseSource) -> None:
    with _muted(), torch.random.fork_rng([]):
        if source.kind == 'init_cfg':
            _replay_init_cfg(backbone, source)
            return
        loaded = CheckpointLoader.load_checkpoint(source.path, map_location='cpu')
        state: dict[str, Tensor] = loaded.get('state_dict', loaded)
        prefix = source.prefix
        state = {
            key.removeprefix('module.').removeprefix(prefix): value
            for key, value in state.items()
            if key.removeprefix('module.').startswith(prefix)
        }
        load_state_dict(backbone, state, strict=False)


def _replay_init_cfg(backbone: nn.Module, source: BaseSource) -> None:
    init_cfg = {'type': 'Pretrained', 'checkpoint': source.path}
    if source.prefix:
        init_cfg['prefix'] = source.prefix
    kept = backbone.init_cfg, backbone._is_init
    # Marked as part of a larger initialisation, which keeps its report out of the logs.
    info: dict[Any, dict[str, Any]] = defaultdict(dict)
    for name, parameter in backbone.named_parameters():
        info[parameter] = {'init_info': name, 'tmp_mean_value': parameter.data.float().mean().cpu()}
    for module in backbone.modules():
        module._params_init_info = info
    try:
        backbone.init_cfg, backbone._is_init = init_cfg, False
        backbone.init_weights()
    finally:
        backbone.init_cfg, backbone._is_init = kept
        for module in backbone.modules():
            module.__dict__.pop('_params_init_info', None)


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
