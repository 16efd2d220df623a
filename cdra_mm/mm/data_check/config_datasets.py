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

from ..config_faults import unknown_word
from ..dataset_configs import SPLITS, dataset_configs, is_wrapper
from ..registry_classes import class_of, default_of

__all__ = [
    'ConfiguredDataset',
    'build',
    'check_command',
    'in_scope',
    'configured_datasets',
    'suffixes_in',
]

LOOKED_AT = 20_000  # files after which the suffixes of a folder are known well enough
NAMED = 5


@dataclass(frozen=True)
class ConfiguredDataset:
    """Where a config names a data set.

    Attributes:
        split: ``'train'``, ``'val'`` or ``'test'``.
        where: The setting, for example ``train_dataloader.dataset``.
        config: The data set's config; wrappers are taken apart.
    """

    split: str
    where: str
    config: Mapping[str, Any]


def configured_datasets(
    cfg: Config, loaders: tuple[str, ...] = tuple(SPLITS)
) -> list[ConfiguredDataset]:
    """Every data set of a config's loaders, in order."""
    return [
        ConfiguredDataset(SPLITS[loader], where, config)
        for loader in loaders
        for where, config in dataset_configs(
            (cfg.get(loader) or {}).get('dataset'), f'{loader}.dataset'
        )
        if 'type' in config and not is_wrapper(config)
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


def build(configured: ConfiguredDataset, advice: str = '') -> Any:
    """Builds a data set that has samples.

    Args:
        configured: Which one; inside `in_scope`.
        advice: Ends every message.

    Raises:
        DataError: If no file fits, or the files do not fit each other.
        ConfigError: If its settings do not fit.
    """
    try:
        dataset = DATASETS.build(dict(configured.config))
        empty = len(dataset) == 0
    except CDRAError:
        raise
    except Exception as error:
        reason = _endless(configured, error) or _no_files(configured) or _palette(configured)
        if reason:
            raise type(reason)(f'{reason}{advice}') from error
        text = f'{type(error).__name__}: {" ".join(str(error).split()) or "no reason given"}'
        raise ConfigError(
            f'{configured.where} ({_type_name(configured)}) cannot be built: '
            f'{unknown_word(error) or text}; mend its settings or its files{advice}'
        ) from error
    if empty:
        reason = _no_files(configured) or DataError(f'{configured.where} has no samples')
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


def _no_files(configured: ConfiguredDataset) -> DataError | None:
    """Why a data set finds no file: an empty folder, or other suffixes than it looks for."""
    for key, setting, folder, wanted in _folders(configured):
        if not os.path.isdir(folder):
            continue
        found = suffixes_in(folder)
        if not found:
            return DataError(
                f'{folder} ({configured.where}) is empty: put the files there, or set {key}'
            )
        if not any(name.endswith(wanted) for name in _names(folder)):
            kinds = ', '.join(f'{count} {suffix}' for suffix, count in found.most_common(NAMED))
            likely = found.most_common(1)[0][0]
            return DataError(
                f'no file in {folder} ({configured.where}) ends in '
                f'{" or ".join(map(repr, wanted))} ({setting}); there are {kinds}: '
                f'set {configured.where}.{setting}='
                + (f"['{likely}']" if setting == 'extensions' else f"'{likely}'")
            )
    return None


def _endless(configured: ConfiguredDataset, error: Exception) -> DataError | None:
    """A link that leads back into a folder above it, which a walk follows until it is stopped."""
    if not isinstance(error, OSError) or error.errno != errno.ELOOP or not error.filename:
        return None
    path = Path(error.filename)
    link = next((part for part in (*reversed(path.parents), path) if part.is_symlink()), path)
    return DataError(
        f'{link} ({configured.where}) is a link that leads back into its own folder: take it away'
    )


def _names(folder: str) -> Iterator[str]:
    for path, _, files in os.walk(folder):
        yield from (os.path.join(path, name) for name in files)


def _folders(configured: ConfiguredDataset) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Each folder of a data set: its setting, the setting of the suffix, path, suffixes."""
    if configured.config.get('ann_file'):
        return  # a list says which files there are
    root = configured.config.get('data_root') or ''
    prefix = configured.config.get('data_prefix') or {}
    parts = prefix if isinstance(prefix, Mapping) else {'img_path': prefix}
    for key, setting in (('img_path', 'img_suffix'), ('seg_map_path', 'seg_map_suffix')):
        suffix = _setting(configured, setting)
        if isinstance(suffix, str) and isinstance(parts.get(key), str):
            where = f'{configured.where}.data_prefix.{key}'
            yield where, setting, os.path.join(root, parts[key]), (suffix,)
    extensions = _setting(configured, 'extensions')
    if isinstance(extensions, list | tuple):
        folder = os.path.join(root, str(parts.get('img_path') or ''))
        yield f'{configured.where}.data_prefix', 'extensions', folder, tuple(extensions)


def _setting(configured: ConfiguredDataset, name: str) -> Any:
    """What a config says, or the default of the class."""
    if name in configured.config:
        return configured.config[name]
    return default_of(class_of(DATASETS, configured.config.get('type')), name)


def _palette(configured: ConfiguredDataset) -> ConfigError | None:
    meta = configured.config.get('metainfo') or {}
    classes, palette = meta.get('classes'), meta.get('palette')
    if not isinstance(classes, list | tuple) or not isinstance(palette, list | tuple):
        return None
    if len(classes) == len(palette):
        return None
    return ConfigError(
        f'{configured.where}.metainfo has {len(classes)} classes and a palette of {len(palette)} '
        'colours: give one colour a class, or leave palette out'
    )


def _type_name(configured: ConfiguredDataset) -> str:
    kind = configured.config.get('type')
    return kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
