"""A backbone that loads adapted checkpoints by itself."""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping
from dataclasses import asdict
from types import FunctionType
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import Tensor, nn

from cdra_mm.command_line import command
from cdra_mm.core import plan_of
from cdra_mm.core.adapters.adapted import describe_in_state
from cdra_mm.core.adapters.layers import PLAIN_LINEAR
from cdra_mm.errors import CheckpointError, ConfigError

from .checkpoints.base_source import BaseSource, named_bases
from .checkpoints.base_weights import is_replaying
from .checkpoints.keys import KEYS, PREFIX, RECORD_KEY
from .checkpoints.restoring import restore
from .guards import set_guards
from .host.model_patches import is_initialising
from .host.runner_parts import config_dict
from .weights.conversion import convert_on_load
from .weights.destinations import destination_of

__all__ = [
    'PREFIX',
    'CDRABackbone',
    'attach_loader',
    'find_backbone',
    'keep_base',
    'wrap_backbone',
    'wrap_config',
]

WRAPPER = 'cdra_mm.CDRABackbone'


@MODELS.register_module()
class CDRABackbone:
    """Builds a backbone whose ``load_state_dict`` understands adapted checkpoints.

    With it, hook-free APIs (``init_model``, the inferencers) load what a run with
    `CDRAHook` has saved. It returns the inner backbone itself, so the names of the
    weights do not change. Runs write their config with it into the work directory.

    Args:
        backbone: Config of the inner backbone.
        base: Where its base weights come from, where the backbone's ``init_cfg`` does not say it:
            ``dict(kind=..., path=..., prefix=...)``, see `BaseSource`. An address in a checkpoint
            is followed only if the config names it.
        pretrained: What mmseg's models put into the config of their backbone.

    Example:
        ``backbone=dict(type='cdra_mm.CDRABackbone', backbone=dict(type=...))``
    """

    def __new__(  # type: ignore[misc]
        cls,
        backbone: dict[str, Any],
        base: dict[str, Any] | None = None,
        pretrained: str | None = None,
    ) -> nn.Module:
        """Builds the inner backbone, which is what is returned."""
        set_guards()
        if pretrained is not None:
            backbone = {**backbone, 'pretrained': pretrained}
        bases = named_bases({'model': {'backbone': {'base': base}}})
        return attach_loader(MODELS.build(backbone), bases)


def attach_loader(backbone: nn.Module, bases: Iterable[BaseSource] = ()) -> nn.Module:
    """Registers the loading of adapted checkpoints and of other projects' weights; once is enough.

    Args:
        backbone: The plain backbone.
        bases: What the config names as its base; see `named_bases`.
    """
    _register_mmcv_linear()
    known = backbone.__dict__.get('_cdra_bases', ())
    backbone.__dict__['_cdra_bases'] = tuple(dict.fromkeys([*known, *bases]))
    if not backbone.__dict__.get('_cdra_loader'):
        backbone.__dict__['_cdra_loader'] = True
        handle = backbone._register_load_state_dict_pre_hook(_prepare, with_module=True)
        # Before the backbone's own hooks, which resize what bears their names.
        hooks: Any = backbone._load_state_dict_pre_hooks  # an OrderedDict
        hooks.move_to_end(handle.id, last=False)
        describe_in_state(backbone)  # now: its adapters are built while torch goes through hooks
        destination = destination_of(backbone)
        if destination is not None:
            destination.attach(backbone)
    return backbone


def find_backbone(model: nn.Module) -> nn.Module:
    """The backbone of an OpenMMLab model.

    Raises:
        ConfigError: If it has none.
    """
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, nn.Module):
        raise ConfigError(
            f'{type(model).__name__} has no backbone: CDRAHook adapts models with a `backbone`, '
            'as segmentors and classifiers have'
        )
    return backbone


def wrap_config(runner: Runner, base: BaseSource | None = None) -> None:
    """The dumped config can be read, and loads the run's checkpoints through hook-free APIs.

    Args:
        runner: A runner in training.
        base: Where its base weights came from.
    """
    named = _name_types(config_dict(runner.cfg))
    if wrap_backbone(runner.cfg, base) or named:
        runner.dump_config()


def keep_base(cfg: Config) -> None:
    """Keeps in a config the base that its ``load_from`` names, before that names a checkpoint.

    Args:
        cfg: The config, changed in place.
    """
    if cfg.get('load_from') and not cfg.get('resume'):
        wrap_backbone(cfg, BaseSource('checkpoint', str(cfg.load_from), PREFIX))


def wrap_backbone(cfg: Config, base: BaseSource | None = None) -> bool:
    """Makes the backbone of a config a `CDRABackbone`.

    Args:
        cfg: The config, changed in place.
        base: Where its base weights came from, if not from its own ``init_cfg``.

    Returns:
        Whether anything was changed.
    """
    model = cfg.get('model')
    backbone = model.get('backbone') if isinstance(model, dict) else None
    if not isinstance(backbone, dict):
        return False
    changed = backbone.get('type') not in (WRAPPER, CDRABackbone.__name__, CDRABackbone)
    if changed:
        backbone = dict(type=WRAPPER, backbone=backbone)
    # The backbone's own init_cfg is in the config already.
    if base is not None and base.kind != 'init_cfg' and not backbone.get('base'):
        backbone['base'], changed = asdict(base), True
    model['backbone'] = backbone
    return changed


def _name_types(config: Any) -> bool:
    """Puts names in the place of classes and functions that are a ``type``, in place.

    mmengine writes a class as ``type=package.module.Class``, which no config can read again.

    Returns:
        Whether there was one.
    """
    found = False
    if isinstance(config, dict):
        for key, value in dict.items(config):  # a lazy object of a config stays one
            if key == 'type' and isinstance(value, type | FunctionType):
                path = f'{value.__module__}.{value.__qualname__}'
                local = value.__module__ == '__main__' or '<locals>' in path
                # What no import finds can only be known to a registry.
                dict.__setitem__(config, key, value.__name__ if local else path)
                found = True
            else:
                found = _name_types(value) or found
    elif isinstance(config, list | tuple):
        found = any([_name_types(value) for value in config])
    return found


def _prepare(
    backbone: nn.Module, state_dict: MutableMapping[str, Tensor], prefix: str, *_: Any
) -> None:
    if prefix + RECORD_KEY in state_dict and is_initialising(backbone):
        raise CheckpointError(
            'init_cfg names a checkpoint with adapters, and weights are initialised before '
            f'adapters can be built: name it in load_from, or merge it first ({command("merge")})'
        )
    is_ours = any(prefix + key in state_dict for key in KEYS)
    if not is_ours and (plan_of(backbone) is None or is_replaying(backbone)):
        convert_on_load(backbone, state_dict, prefix)
    restore(backbone, state_dict, prefix)


def _register_mmcv_linear() -> None:
    """mmcv's Linear is nn.Linear with a workaround for empty inputs of old releases."""
    from mmcv.cnn.bricks.wrappers import Linear

    PLAIN_LINEAR.add(Linear)
