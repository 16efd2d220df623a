"""One line, with the place in the config, for what OpenMMLab cannot build or run of it.

OpenMMLab builds a part of a config by calling its class with the part's settings, so that a
misspelt word ends in Python's own complaint about a call, some levels deep, which names no place.
Whether the config is at fault is seen from where the error was raised: in a call that builds
something, about a word that the config holds, or in a layer of a head, about the size of what it is
given. Everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import OPTIMIZERS, Registry
from torch import nn

from cdra_mm.errors import ConfigError
from cdra_mm.spelling import did_you_mean, first_of, unknown

__all__ = ['config_fault', 'settings_of', 'unknown_word']

UNKNOWN_KEY = re.compile(r"(?:(\w+)\.)?(\w+)\(\) got an unexpected keyword argument '(\w+)'")
MISSING_KEY = re.compile(r'(?:(\w+)\.)?(\w+)\(\) missing \d+ required .*arguments?: (.+)')
UNKNOWN_TYPE = re.compile(r'(\S+) is not in the (\S+)::(.+?) registry')
NO_TYPE = 'must contain the key "type"'
MISFIT = re.compile(r'shapes cannot be multiplied|to have \d+ channels|normalized_shape')
# What of mmengine builds a part of a config, and its argument that is the part.
BUILDERS = {
    'build_from_cfg': 'cfg',
    'build_dataloader': 'dataloader',
    'build_train_loop': 'loop',
    'build_val_loop': 'loop',
    'build_test_loop': 'loop',
}
# Whose refusal of a value is no bug in a class of the user's own.
LIBRARIES = ('torch', 'mmengine', 'mmcv', 'mmseg', 'mmpretrain')
HEADS = ('head', 'decode_head', 'auxiliary_head', 'neck')
NAMED_PLACES = 3


class _Raised(NamedTuple):
    """An error, what it says, the calls that led to it, and the config of the run."""

    error: Exception
    text: str
    frames: Sequence[FrameType]
    config: Mapping[str, Any]


def config_fault(error: Exception) -> ConfigError | None:
    """What a config has to change where it could not be built or its head cannot run.

    Args:
        error: As it was caught, with its traceback.

    Returns:
        The error to raise instead; None where the config is not at fault.
    """
    return _explained(error, (*UNKNOWN, _refused_value, _misfit))


def unknown_word(error: Exception) -> ConfigError | None:
    """`config_fault` of a setting or a type that is not known, alone."""
    return _explained(error, UNKNOWN)


def _explained(
    error: Exception, explanations: Sequence[Callable[[_Raised], ConfigError | None]]
) -> ConfigError | None:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    configs = [v for f in frames for v in f.f_locals.values() if isinstance(v, Config)]
    config = configs[0].to_dict() if configs else {}
    text = ' '.join(str(error.args[0]).split()) if error.args else ''
    raised = _Raised(error, text, frames, config)
    explained = (explain(raised) for explain in explanations)
    return next((fault for fault in explained if fault is not None), None)


def _unknown_key(raised: _Raised) -> ConfigError | None:
    found = UNKNOWN_KEY.search(raised.text)
    if found is None or not _in_construction(raised):
        return None
    cls, key = _called(found, raised), found[3]
    places = list(_places(raised.config, lambda part: key in part))
    given = any(key in (frame.f_locals.get('cfg') or ()) for frame in _builds(raised))
    if not places and not given:
        return None  # its own code has given it
    if cls is None:
        return ConfigError(f'{_at(places)}there is no setting {key!r} ({raised.text})')
    what = f'{cls.__name__} has no setting'
    return ConfigError(_at(places) + unknown(what, key, settings_of(cls), ''))


def _missing_key(raised: _Raised) -> ConfigError | None:
    found = MISSING_KEY.search(raised.text)
    cls = _called(found, raised) if found else None
    if found is None or cls is None or not _in_construction(raised):
        return None
    return ConfigError(f'{_at(_places_of(cls, raised))}{cls.__name__} needs {found[3]}: add it')


def _unknown_type(raised: _Raised) -> ConfigError | None:
    found = UNKNOWN_TYPE.search(raised.text)
    registries = [frame.f_locals.get('registry') for frame in _builds(raised)]
    if found is None or not registries:
        return None
    return _no_such_type(found[1].lstrip('\'"'), registries[-1], raised.config)


def _unknown_optimizer(raised: _Raised) -> ConfigError | None:
    """mmengine looks it up itself, and asks for the parameters of what it has not found."""
    for frame in raised.frames:
        given = frame.f_locals
        if 'optimizer_cfg' in given and given.get('optimizer_cls', '') is None:
            return _no_such_type(given['optimizer_cfg']['type'], OPTIMIZERS, raised.config)
    return None


def _no_such_type(name: str, registry: Any, config: Mapping[str, Any]) -> ConfigError:
    known = list(_names(registry)) if isinstance(registry, Registry) else []
    what = registry.name if isinstance(registry, Registry) else 'class'
    places = list(_places(config, lambda part: part.get('type') == name))
    return ConfigError(
        f'{_at(places)}type={name!r}: there is no {what} of this name{did_you_mean(name, known)}; '
        'a class of your own needs custom_imports in the config'
    )


def _no_type(raised: _Raised) -> ConfigError | None:
    part = raised.frames[-1].f_locals.get('cfg') if raised.frames else None
    if NO_TYPE not in raised.text or not isinstance(part, Mapping):
        return None
    given = dict(part)
    places = list(_places(raised.config, lambda other: 'type' not in other and other == given))
    keys = ', '.join(map(str, given)) or 'nothing'
    return ConfigError(f'{_at(places)}the type is missing (given: {keys}): name what is built')


def _refused_value(raised: _Raised) -> ConfigError | None:
    """A class's own check of a value."""
    if not raised.text or not isinstance(raised.error, ValueError | AssertionError | TypeError):
        return None
    cls = _built(raised)
    if cls is None or cls.__module__.partition('.')[0] not in LIBRARIES:
        return None
    return ConfigError(
        f'{_at(_places_of(cls, raised))}{cls.__name__} cannot be built: '
        f'{type(raised.error).__name__}: {raised.text.rstrip(".")}; mend its settings'
    )


def _misfit(raised: _Raised) -> ConfigError | None:
    """A layer of a head that is given another width than it was built for."""
    if not isinstance(raised.error, RuntimeError) or not MISFIT.search(raised.text):
        return None
    modules = [frame.f_locals.get('self') for frame in raised.frames]
    called = [module for module in modules if isinstance(module, nn.Module)]
    model = next((module for module in called if isinstance(module, BaseModel)), None)
    if model is None:
        return None
    name = next((name for name, module in model.named_modules() if module is called[-1]), '')
    head = name.partition('.')[0]
    if head not in HEADS:
        return None
    return ConfigError(
        f'model.{name} ({type(called[-1]).__name__}) is given another width than it was built '
        f"for: {raised.text}; make in_channels of the config's model.{head} what the part before "
        'it gives'
    )


UNKNOWN = (_unknown_key, _missing_key, _unknown_type, _unknown_optimizer, _no_type)


def _in_construction(raised: _Raised) -> bool:
    name = raised.frames[-1].f_code.co_name if raised.frames else ''
    return name in ('__init__', 'get_instance') or name.startswith('build')


def _builds(raised: _Raised) -> list[FrameType]:
    """The calls that built something, the outermost first."""
    return [frame for frame in raised.frames if frame.f_code.co_name in BUILDERS]


def _built(raised: _Raised) -> Any:
    """What was built last, a class or a function; None where nothing was."""
    builds = _builds(raised)
    if not builds:
        return None
    if 'obj_cls' in builds[-1].f_locals:
        return builds[-1].f_locals['obj_cls']
    # mmengine calls the class itself.
    after = raised.frames[raised.frames.index(builds[-1]) + 1 :]
    return type(after[0].f_locals['self']) if after and 'self' in after[0].f_locals else None


def _called(found: re.Match[str], raised: _Raised) -> type | None:
    """The class that was built when what was found, it or a base of it, was called."""
    name, function = found[1], found[2]
    if name is None or function not in ('__init__', '__new__'):
        return None
    for frame in reversed(_builds(raised)):
        cls = frame.f_locals.get('obj_cls')
        if isinstance(cls, type) and name in [base.__name__ for base in cls.__mro__]:
            return cls
    last = raised.frames[-1]
    seen = [*last.f_locals.values(), *last.f_globals.values()]
    return next((v for v in seen if isinstance(v, type) and v.__name__ == name), None)


def settings_of(cls: type) -> list[str]:
    """The names that a class takes, its bases' where it hands on what it does not know."""
    names: list[str] = []
    for base in cls.__mro__:
        if '__init__' not in vars(base) or base is object:
            continue
        parameters = list(inspect.signature(vars(base)['__init__']).parameters.values())[1:]
        named = (p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
        names += [name for name in named if name not in names]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def _names(registry: Registry) -> Iterator[str]:
    """All names that a registry finds: its own, and those of what it is a part of."""
    place: Registry | None = registry
    while place is not None:
        yield from place.module_dict
        place = place.parent


def _at(places: Sequence[str]) -> str:
    return f'{first_of(places, NAMED_PLACES)}: ' if places else ''


def _places_of(cls: Any, raised: _Raised) -> list[str]:
    """Where the config has the part that was built last; by its class where it was changed."""
    build = next(iter(reversed(_builds(raised))), None)
    part = build.f_locals.get(BUILDERS[build.f_code.co_name]) if build else None
    if isinstance(part, Mapping):
        given = dict(part)
        same = list(_places(raised.config, lambda other: other == given))
        if same:
            return same
    name = getattr(cls, '__name__', '')
    return list(_places(raised.config, lambda other: _is_named(other.get('type'), name)))


def _is_named(kind: Any, name: str) -> bool:
    given = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return given.rpartition('.')[2] == name


def _places(
    part: Any, matches: Callable[[Mapping[str, Any]], bool], where: str = ''
) -> Iterator[str]:
    """The paths of the dicts of a config that match, as ``--cfg-options`` writes them."""
    entries: Any = ()
    if isinstance(part, Mapping):
        if where and matches(part):
            yield where
        entries = part.items()
    elif isinstance(part, list | tuple):
        entries = enumerate(part)
    for key, value in entries:
        yield from _places(value, matches, f'{where}.{key}' if where else str(key))
