"""The calls of mmengine that build the parts of a config, seen in an error's traceback."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.registry import build_from_cfg
from mmengine.runner import Runner

__all__ = [
    'LIBRARIES',
    'Raised',
    'dicts_of',
    'frames_of',
    'is_of',
    'places_of',
    'raised_while_building',
]

LIBRARIES = ('torch', 'torchvision', 'numpy', 'timm', 'mmengine', 'mmcv', 'mmseg', 'mmpretrain')
COMMANDS = ('cdra_mm', '__main__')  # what calls mmengine, beside the standard library

# What of mmengine builds a part of a config: the argument that is the part, and the part's place,
# '' where it is looked for.
BUILDERS: dict[CodeType, tuple[str, str]] = {
    build_from_cfg.__code__: ('cfg', ''),
    Runner.build_dataloader.__code__: ('dataloader', ''),
    Runner.build_evaluator.__code__: ('evaluator', ''),
    Runner.build_train_loop.__code__: ('loop', 'train_cfg'),
    Runner.build_val_loop.__code__: ('loop', 'val_cfg'),
    Runner.build_test_loop.__code__: ('loop', 'test_cfg'),
    Runner.build_model.__code__: ('model', 'model'),
    Runner.build_optim_wrapper.__code__: ('optim_wrapper', 'optim_wrapper'),
    Runner.build_param_scheduler.__code__: ('scheduler', 'param_scheduler'),
    Runner.build_visualizer.__code__: ('visualizer', 'visualizer'),
    Runner.build_log_processor.__code__: ('log_processor', 'log_processor'),
    Runner.register_default_hooks.__code__: ('hooks', 'default_hooks'),
    Runner.register_custom_hooks.__code__: ('hooks', 'custom_hooks'),
    Runner.setup_env.__code__: ('env_cfg', 'env_cfg'),
}


class Raised(NamedTuple):
    """An error that was raised while a part of a config was built.

    Attributes:
        error: The error.
        text: What it says.
        build: The innermost call that builds a part which the config has.
        after: The calls that it led to.
        part: The part.
        places: Where the config has it.
        config: The config.
        by_libraries: Whether these calls are all of the libraries.
        by_constructors: Whether they are of one object's constructors, its own and its bases'.
    """

    error: Exception
    text: str
    build: FrameType
    after: Sequence[FrameType]
    part: Any
    places: Sequence[str]
    config: Mapping[str, Any]
    by_libraries: bool
    by_constructors: bool


def raised_while_building(error: Exception) -> Raised | None:
    """Of an error, what is needed to say which part of a config is at fault.

    Returns:
        None where no part of the config was being built.
    """
    frames = frames_of(error)
    # Not `isinstance`, which asks an object for its class: a dead proxy has none.
    configs = [v for f in frames for v in f.f_locals.values() if issubclass(type(v), Config)]
    config: Mapping[str, Any] = configs[0].to_dict() if configs else {}
    for number in range(len(frames) - 1, -1, -1):
        build, after = frames[number], frames[number + 1 :]
        if build.f_code not in BUILDERS:
            continue
        argument, place = BUILDERS[build.f_code]
        part = build.f_locals.get(argument)
        by_users = any(not is_of(frame, (*LIBRARIES, *COMMANDS)) for frame in frames[:number])
        places = [place] if place else places_of(part, config, changed=not by_users)
        # Within a data set that is looked at by itself there is no config to look in.
        if places or (not config and build.f_code is build_from_cfg.__code__):
            text = ' '.join(str(error.args[0]).split()) if error.args else ''
            by_libraries = all(is_of(frame, LIBRARIES) for frame in after)
            made = {id(frame.f_locals.get('self')) for frame in after}
            by_constructors = len(made) <= 1 and {f.f_code.co_name for f in after} <= {'__init__'}
            return Raised(
                error, text, build, after, part, places, config, by_libraries, by_constructors
            )
    return None


def frames_of(error: Exception) -> list[FrameType]:
    """The calls that led to an error, the outermost first."""
    return [frame for frame, _ in traceback.walk_tb(error.__traceback__)]


def is_of(frame: FrameType, packages: Sequence[str]) -> bool:
    """Whether a call is of one of some packages, or of the standard library."""
    package = str(frame.f_globals.get('__name__', '')).partition('.')[0]
    return package in packages or package in sys.stdlib_module_names


def places_of(part: Any, config: Mapping[str, Any], *, changed: bool) -> list[str]:
    """Where a config has a part, as ``--cfg-options`` writes it.

    Args:
        part: As it was built, perhaps with more settings than the config has.
        config: The config.
        changed: Whether one of the same type will do, where none has these settings.
    """
    if not isinstance(part, Mapping) or not part:
        return []
    places, kind = list(dicts_of(config)), part.get('type')
    changed = changed and kind is not None
    return (
        [where for where, own in places if len(own) == len(part) and _within(own, part)]
        or [where for where, own in places if own and _within(own, part)]
        or [where for where, own in places if changed and _same(own.get('type'), kind)]
    )


def _within(own: Mapping[str, Any], part: Mapping[str, Any]) -> bool:
    """Whether a dict's settings are all in another; mmengine takes a hook's priority out."""
    return all(
        key == 'priority' or (key in part and _same(value, part[key])) for key, value in own.items()
    )


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one is other or one == other)
    except Exception:  # of tensors, say, which compare entry by entry
        return False


def dicts_of(part: Any, where: str = '') -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The dicts of a config with their paths."""
    entries: Any = ()
    if isinstance(part, Mapping):
        if where:
            yield where, part
        entries = part.items()
    elif isinstance(part, list | tuple):
        entries = enumerate(part)
    for key, value in entries:
        yield from dicts_of(value, f'{where}.{key}' if where else str(key))
