"""One line, with the place in the config, for what OpenMMLab cannot build or run of it.

OpenMMLab builds a part of a config by calling its class with the part's settings, so that a
misspelt word ends in Python's own complaint about a call, some levels deep, which names no place.
The config is at fault where the call that builds a part of it fails in code of the libraries alone,
where a class hands on a word of it that its bases do not know, or where a layer of a library's head
is given another width than its own. All else is a bug and keeps its traceback.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmengine.model import BaseModel
from mmengine.registry import OPTIMIZERS, Registry
from mmengine.runner import Runner
from torch import nn

from cdra_mm.errors import CDRAError, ConfigError
from cdra_mm.spelling import did_you_mean, first_of

from .config_parts import LIBRARIES, Raised, frames_of, is_of, places_of, raised_while_building
from .registry_classes import settings_of

__all__ = ['config_fault', 'unknown_word']

UNKNOWN_KEY = re.compile(r"(?:(\w+)\.)?(\w+)\(\) got an unexpected keyword argument '(\w+)'")
MISSING_KEY = re.compile(r'(?:(\w+)\.)?(\w+)\(\) missing \d+ required .*arguments?: (.+)')
UNKNOWN_TYPE = re.compile(r'(\S+) is not in the (\S+)::(.+?) registry')
NO_TYPE = 'must contain the key "type"'
MISFIT = re.compile(r'shapes cannot be multiplied|to have \d+ channels|normalized_shape')
# Releases that do not fit each other, which no setting mends.
MISMATCH = re.compile(r"module '.+' has no attribute")
# What a class says of a value that it cannot take.
REFUSALS = (ValueError, AssertionError, TypeError, LookupError, AttributeError)
HEADS = ('head', 'decode_head', 'auxiliary_head', 'neck')
NAMED_PLACES = 3


def config_fault(error: Exception) -> ConfigError | None:
    """What a config has to change where it could not be built or its head cannot run.

    Args:
        error: As it was caught, with its traceback.

    Returns:
        The error to raise instead; None where the config is not at fault.
    """
    return _explained(error, (*UNKNOWN, _refused_value)) or _misfit(error)


def unknown_word(error: Exception) -> ConfigError | None:
    """`config_fault` of a setting or a type that is not known, alone."""
    return _explained(error, UNKNOWN)


def _explained(
    error: Exception, explanations: Sequence[Callable[[Raised], ConfigError | None]]
) -> ConfigError | None:
    raised = None if isinstance(error, CDRAError) else raised_while_building(error)
    if raised is None:
        return None
    if not raised.by_libraries:
        # A word that a class hands on to its bases is the config's, whoever's class it is.
        return _unknown_key(raised) if raised.by_constructors else None
    faults = (explain(raised) for explain in explanations)
    return next((fault for fault in faults if fault is not None), None)


def _unknown_key(raised: Raised) -> ConfigError | None:
    found = UNKNOWN_KEY.search(raised.text)
    cls = _called(found, raised) if found else None
    if found is None or cls is None or not isinstance(raised.part, Mapping):
        return None
    key = found[3]
    if key not in raised.part:
        return None
    known = settings_of(cls)
    near = did_you_mean(key, ['type', *known])
    expected = f': expected one of {", ".join(known)}' if known else ''
    return ConfigError(f'{_at(raised)}{cls.__name__} has no setting {key!r}{near}{expected}')


def _missing_key(raised: Raised) -> ConfigError | None:
    found = MISSING_KEY.search(raised.text)
    cls = _called(found, raised) if found else None
    if found is None or cls is None:
        return None
    return ConfigError(f'{_at(raised)}{cls.__name__} needs {found[3]}: add it')


def _unknown_type(raised: Raised) -> ConfigError | None:
    given = raised.build.f_locals
    if not UNKNOWN_TYPE.search(raised.text) or given.get('obj_cls', '') is not None:
        return None
    return _no_such_type(given.get('obj_type'), given.get('registry'), _at(raised))


def _unknown_optimizer(raised: Raised) -> ConfigError | None:
    """mmengine looks it up itself, and asks for the parameters of what it has not found."""
    for frame in raised.after:
        given = frame.f_locals
        if 'optimizer_cfg' in given and given.get('optimizer_cls', '') is None:
            name = given['optimizer_cfg'].get('type')
            return _no_such_type(name, OPTIMIZERS, 'optim_wrapper.optimizer: ')
    return None


def _no_such_type(name: Any, registry: Any, at: str) -> ConfigError:
    known = list(_names(registry)) if isinstance(registry, Registry) else []
    what = registry.name if isinstance(registry, Registry) else 'class'
    near = did_you_mean(name, known)
    return ConfigError(
        f'{at}type={name!r}: there is no {what} of this name{near}; one of another package is '
        'named with it (mmpretrain.NAME), a class of your own needs custom_imports in the config'
    )


def _names(registry: Registry) -> Iterator[str]:
    """All names that a registry finds: its own, and those of what it is a part of."""
    place: Registry | None = registry
    while place is not None:
        yield from place.module_dict
        place = place.parent


def _no_type(raised: Raised) -> ConfigError | None:
    frame = raised.after[-1] if raised.after else raised.build
    part = frame.f_locals.get('cfg')
    if NO_TYPE not in raised.text or not isinstance(part, Mapping):
        return None
    places = places_of(part, raised.config, changed=False) or raised.places
    keys = ', '.join(map(str, part)) or 'nothing'
    return ConfigError(
        f'{first_of(places, NAMED_PLACES)}: the type is missing (given: {keys}): name what is built'
    )


UNKNOWN = (_unknown_key, _missing_key, _unknown_type, _unknown_optimizer, _no_type)


def _refused_value(raised: Raised) -> ConfigError | None:
    """A class's own check of a value, or what comes of a value that nobody checks."""
    if not isinstance(raised.error, REFUSALS) or MISMATCH.match(raised.text):
        return None
    text = raised.text or traceback.extract_tb(raised.error.__traceback__)[-1].line
    if not text:
        return None
    cls = _built(raised)
    what = f'{_at(raised)}{cls.__name__}' if cls is not None else first_of(raised.places)
    return ConfigError(
        f'{what} cannot be built: {type(raised.error).__name__}: {text.rstrip(".")}; mend its '
        'settings'
    )


def _misfit(error: Exception) -> ConfigError | None:
    """A layer of a head that is given another width than it was built for."""
    if not isinstance(error, RuntimeError) or not MISFIT.search(str(error)):
        return None
    frames = frames_of(error)
    calls = [(f, f.f_locals['self']) for f in frames if 'self' in f.f_locals]
    model = next((m for _, m in calls if issubclass(type(m), BaseModel)), None)
    called = [(f, m) for f, m in calls if issubclass(type(m), nn.Module)]
    if model is None or not type(called[-1][1]).__module__.startswith('torch.nn.'):
        return None
    layer = called[-1][1]
    name = next((name for name, module in model.named_modules() if module is layer), '')
    head = name.partition('.')[0]
    entered = next((f for f, m in called if m is getattr(model, head or 'none', None)), None)
    if head not in HEADS or entered is None:
        return None
    if not all(is_of(frame, LIBRARIES) for frame in frames[frames.index(entered) :]):
        return None
    return ConfigError(
        f'model.{name} ({type(layer).__name__}) is given another width than it was built for: '
        f"{' '.join(str(error).split())}; make in_channels of the config's model.{head} what the "
        'part before it gives'
    )


def _built(raised: Raised) -> Any:
    """What was built, a class or a function; None where it is not known."""
    cls = raised.build.f_locals.get('obj_cls')
    if cls is None and raised.after and 'self' in raised.after[0].f_locals:
        made = type(raised.after[0].f_locals['self'])
        cls = None if issubclass(made, Runner) else made  # which mmengine calls itself
    return cls


def _called(found: re.Match[str], raised: Raised) -> Any:
    """The class that was built, if it or a base of it was called as was found."""
    name = found[1] or found[2]
    cls = _built(raised) or raised.build.f_globals.get(name)
    names = [base.__name__ for base in getattr(cls, '__mro__', (cls,)) if base is not None]
    return cls if name in names and (found[1] is None or found[2] == '__init__') else None


def _at(raised: Raised) -> str:
    return f'{first_of(raised.places, NAMED_PLACES)}: ' if raised.places else ''
