"""The data sets that a config names, built one by one, with what keeps one from being built."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from cdra_mm.command_line import command
from cdra_mm.errors import CDRAError, ConfigError, DataError

from .registered import class_of, default_of

__all__ = ['Place', 'build', 'check_command', 'in_scope', 'places', 'suffixes_in']

SPLITS = {'train_dataloader': 'train', 'val_dataloader': 'val', 'test_dataloader': 'test'}
LOOKED_AT = 20_000  # files after which the suffixes of a folder are known well enough
NAMED = 5


@dataclass(frozen=True)
class Place:
    """Where a config names a data set.

    Attributes:
        split: ``'train'``, ``'val'`` or ``'test'``.
        where: The setting, for example ``train_dataloader.dataset``.
        config: The data set's config; wrappers are taken apart.
    """

    split: str
    where: str
    config: Mapping[str, Any]


def places(cfg: Config, loaders: tuple[str, ...] = tuple(SPLITS)) -> list[Place]:
    """Every data set of a config's loaders, in order."""
    return [
        Place(SPLITS[loader], where, config)
        for loader in loaders
        for where, config in _leaves((cfg.get(loader) or {}).get('dataset'), f'{loader}.dataset')
    ]


def check_command(cfg: Config) -> str:
    """The command that looks at every file of a config's data."""
    return command('data check', cfg.filename or 'CONFIG')


@contextmanager
def in_scope(cfg: Config) -> Iterator[None]:
    """Names are looked up where the config means them."""
    scope = cfg.get('default_scope') or 'mmengine'
    with DefaultScope.overwrite_default_scope(scope):
        yield


def build(place: Place, advice: str = '') -> Any:
    """Builds a data set that has samples.

    Args:
        place: Which one; inside `in_scope`.
        advice: Ends every message.

    Raises:
        DataError: If no file fits, or the files do not fit each other.
        ConfigError: If its settings do not fit.
    """
    try:
        dataset = DATASETS.build(dict(place.config))
        empty = len(dataset) == 0
    except CDRAError:
        raise
    except Exception as error:
        reason = _endless(place, error) or _no_files(place) or _palette(place)
        if reason:
            raise type(reason)(f'{reason}{advice}') from error
        text = ' '.join(str(error).split()) or 'no reason given'
        raise ConfigError(
            f'{place.where} ({_type_name(place)}) cannot be built: {type(error).__name__}: '
            f'{text}; mend its settings or its files{advice}'
        ) from error
    if empty:
        reason = _no_files(place) or DataError(f'{place.where} has no samples')
        raise type(reason)(f'{reason}{advice}')
    return dataset


def suffixes_in(folder: str | Path) -> Counter[str]:
    """How many files of each suffix lie in a folder, its own folders included."""
    found: Counter[str] = Counter()
    for _, _, files in os.walk(folder):
        found.update(os.path.splitext(name)[1] or name for name in files)
        if found.total() > LOOKED_AT:
            break
    return found


def _leaves(config: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(config, list | tuple):
        for position, entry in enumerate(config):
            yield from _leaves(entry, f'{where}.{position}')
    elif isinstance(config, Mapping):
        inner = [key for key in ('dataset', 'datasets') if config.get(key)]
        for key in inner:
            yield from _leaves(config[key], f'{where}.{key}')
        if not inner and 'type' in config:
            yield where, config


def _no_files(place: Place) -> DataError | None:
    """Why a data set finds no file: an empty folder, or other suffixes than it looks for."""
    for key, setting, folder, wanted in _folders(place):
        if not os.path.isdir(folder):
            continue
        found = suffixes_in(folder)
        if not found:
            return DataError(
                f'{folder} ({place.where}) is empty: put the files there, or set {key}'
            )
        if not any(name.endswith(wanted) for name in _names(folder)):
            kinds = ', '.join(f'{count} {suffix}' for suffix, count in found.most_common(NAMED))
            likely = found.most_common(1)[0][0]
            return DataError(
                f'no file in {folder} ({place.where}) ends in {" or ".join(map(repr, wanted))} '
                f'({setting}); there are {kinds}: set {place.where}.{setting}='
                + (f"['{likely}']" if setting == 'extensions' else f"'{likely}'")
            )
    return None


def _endless(place: Place, error: Exception) -> DataError | None:
    """A link that leads back into a folder above it, which a walk follows until it is stopped."""
    if not isinstance(error, OSError) or error.errno != errno.ELOOP or not error.filename:
        return None
    path = Path(error.filename)
    link = next((part for part in (*reversed(path.parents), path) if part.is_symlink()), path)
    return DataError(
        f'{link} ({place.where}) is a link that leads back into its own folder: take it away'
    )


def _names(folder: str) -> Iterator[str]:
    for path, _, files in os.walk(folder):
        yield from (os.path.join(path, name) for name in files)


def _folders(place: Place) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Each folder of a data set: its setting, the setting of the suffix, path, suffixes."""
    if place.config.get('ann_file'):
        return  # a list says which files there are
    root = place.config.get('data_root') or ''
    prefix = place.config.get('data_prefix') or {}
    parts = prefix if isinstance(prefix, Mapping) else {'img_path': prefix}
    for key, setting in (('img_path', 'img_suffix'), ('seg_map_path', 'seg_map_suffix')):
        suffix = _setting(place, setting)
        if isinstance(suffix, str) and isinstance(parts.get(key), str):
            where = f'{place.where}.data_prefix.{key}'
            yield where, setting, os.path.join(root, parts[key]), (suffix,)
    extensions = _setting(place, 'extensions')
    if isinstance(extensions, list | tuple):
        folder = os.path.join(root, str(parts.get('img_path') or ''))
        yield f'{place.where}.data_prefix', 'extensions', folder, tuple(extensions)


def _setting(place: Place, name: str) -> Any:
    """What a config says, or the default of the class."""
    if name in place.config:
        return place.config[name]
    return default_of(class_of(DATASETS, place.config.get('type')), name)


def _palette(place: Place) -> ConfigError | None:
    meta = place.config.get('metainfo') or {}
    classes, palette = meta.get('classes'), meta.get('palette')
    if not isinstance(classes, list | tuple) or not isinstance(palette, list | tuple):
        return None
    if len(classes) == len(palette):
        return None
    return ConfigError(
        f'{place.where}.metainfo has {len(classes)} classes and a palette of {len(palette)} '
        'colours: give one colour a class, or leave palette out'
    )


def _type_name(place: Place) -> str:
    kind = place.config.get('type')
    return kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
