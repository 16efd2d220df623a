"""What a run reads is looked for before the run begins."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import Tensor, nn

from cdra_mm.command_line import command
from cdra_mm.data import SOURCES
from cdra_mm.data.pairs import PairSplit
from cdra_mm.errors import CheckpointError, ConfigError, DataError
from cdra_mm.reading import open_safetensors
from cdra_mm.reading.allowed_types import ForeignTypeError, ReadingError
from cdra_mm.reading.torch_archive import archive_places
from cdra_mm.storage.regular_file import open_regular

from .cached_files import DownloadError
from .compatibility import load_checkpoint
from .dataset_configs import LOADERS, dataset_configs

__all__ = [
    'check_inputs',
    'check_output_folder',
    'check_weight_file',
    'named_downloads',
    'named_files',
    'refuse_foreign_weights',
]

# What mmengine asks for whole or not at all.
PARTS = {
    'val': ('val_dataloader', 'val_cfg', 'val_evaluator'),
    'test': ('test_dataloader', 'test_cfg', 'test_evaluator'),
    'train': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
}
# mmengine's words about a file that has nothing under a prefix.
NOTHING_BELOW = ' is not in the pretrained model'


def check_inputs(cfg: Config, stage: str) -> None:
    """Looks for everything that a run reads: data, pretrained weights, a given plan.

    Addresses are left to mmengine's downloader. Data sets that download
    themselves, and ours, which check more than this, are left to themselves.

    Args:
        cfg: The config of a run.
        stage: ``'train'`` or ``'test'``.

    Raises:
        ConfigError: If the config lacks a part that the stage needs.
        DataError: If a folder or list of a data set is missing; names the
            command that makes it where one is known (a config can say it in the variable
            ``prepare_data``: a text, or name and root for ``cdra data prepare``).
        CheckpointError: If a weight file is missing or damaged.
    """
    needed = ('model', 'train_cfg', 'optim_wrapper') if stage == 'train' else ('model', 'test_cfg')
    for key in (*needed, LOADERS[stage][0]):
        if cfg.get(key) is None:
            raise ConfigError(f'the config has no {key}: it is needed to {stage} a model')
    for name, keys in PARTS.items():
        missing = [key for key in keys if cfg.get(key) is None]
        if 0 < len(missing) < len(keys):
            there = next(key for key in keys if key not in missing)
            raise ConfigError(
                f'the config has {there}, but no {" and no ".join(missing)}: give all of '
                f'{", ".join(keys)}, or none (no {name} stage then)'
            )
    for loader in LOADERS[stage]:
        _check_loader(cfg, loader)
        for where, dataset in _located(cfg.get(loader), loader):
            _check_dataset(cfg, where, dataset)
    if cfg.get('load_from'):
        check_weight_file(cfg.load_from, 'load_from')
    if stage == 'train':
        for where, path in _pretrained(cfg.model, 'model'):
            check_weight_file(path, where)
        plan = ((cfg.get('default_hooks') or {}).get('cdra') or {}).get('plan')
        if plan and not Path(plan).is_file():
            raise ConfigError(f'plan {plan} does not exist: name a cdra_plan.json of another run')


def _check_loader(cfg: Config, name: str) -> None:
    """What goes with workers needs some."""
    loader = cfg.get(name)
    if not isinstance(loader, Mapping) or loader.get('num_workers', 0) != 0:
        return
    for key in ('persistent_workers', 'prefetch_factor'):
        if loader.get(key):
            raise ConfigError(
                f'{name}.num_workers=0: {key}={loader[key]!r} needs workers; give '
                f'{name}.{key}={False if loader[key] is True else None} too, or at least one worker'
            )


def named_files(cfg: Config) -> Iterator[tuple[str, str]]:
    """What a config reads beside data: what each file or address is, and where it is."""
    if getattr(cfg, 'filename', None):
        yield 'the config', str(cfg.filename)
    for where, path in _pretrained(cfg.get('model'), 'model'):
        yield f'the base weights ({where})', path
    if cfg.get('load_from'):
        yield 'load_from of the config', str(cfg.load_from)
    plan = ((cfg.get('default_hooks') or {}).get('cdra') or {}).get('plan')
    if plan:
        yield 'the plan', str(plan)


def check_output_folder(cfg: Config, folder: str, option: str) -> None:
    """Refuses a folder for predictions that lies in the test data: label maps are named alike.

    Raises:
        ConfigError: If it is a folder of the data set, or lies in one.
    """
    out = Path(folder).expanduser().resolve()
    for where, dataset in _located(cfg.get('test_dataloader'), 'test_dataloader'):
        root = dataset.get('data_root') or ''
        prefix = dataset.get('data_prefix') or {}
        for part in prefix.values() if isinstance(prefix, Mapping) else [prefix]:
            path = os.path.join(root, part) if isinstance(part, str) else ''
            if path and '://' not in path:
                place = Path(path).expanduser().resolve()
                if out == place or place in out.parents:
                    raise ConfigError(
                        f'{option} {folder} lies in the data ({where}): name a folder elsewhere'
                    )


def check_weight_file(path: str, where: str = 'checkpoint') -> None:
    """Checks that a local weight file exists and is whole; addresses pass.

    Args:
        path: Path or address.
        where: What names it, for the message.

    Raises:
        CheckpointError: If it is missing, cut off, or no weight file.
    """
    if '://' in str(path):
        return
    file = Path(path).expanduser()
    stream, size = open_regular(file, 'weight file', where)
    try:
        with stream:
            if file.suffix == '.safetensors':
                open_safetensors(file)
                return
            is_archive = stream.read(2) == b'PK'
            if is_archive and file.suffix != '.npz':
                archive_places(stream, size)
        if not is_archive:
            load_checkpoint(file)
    except CheckpointError as error:
        raise CheckpointError(f'weight file ({where}): {error}') from None
    except ForeignTypeError as error:
        raise CheckpointError(
            f'weight file {path} ({where}) is {error}: name a file that torch.save wrote'
        ) from None
    except ReadingError as error:
        raise CheckpointError(
            f'weight file {path} ({where}) is cut off or damaged ({error}; '
            f'{file.stat().st_size:,} bytes): copy or download it again'
        ) from None


@contextmanager
def named_downloads(cfg: Config) -> Iterator[None]:
    """A weight file that cannot be downloaded is named, with where its address stands.

    Raises:
        CheckpointError: If a download fails inside the block, or a file has nothing under the
            ``prefix`` of its init_cfg, which mmengine asserts.
    """
    try:
        yield
    except AssertionError as error:
        if not str(error).endswith(NOTHING_BELOW):
            raise
        files = ', '.join(f'{path} ({where})' for where, path in _pretrained(cfg.model, 'model'))
        given = str(error).removesuffix(NOTHING_BELOW)
        raise CheckpointError(
            f'{files}: no weight begins with {given!r}: change the prefix of init_cfg, or name '
            'another file'
        ) from error
    except DownloadError as error:
        named = [*_pretrained(cfg.model, 'model'), ('load_from', str(cfg.get('load_from')))]
        where = ', '.join(where for where, path in named if path == error.address)
        what = f'{error.address} ({where})' if where else error.address
        raise CheckpointError(str(error).replace(error.address, what, 1)) from error


def refuse_foreign_weights(model: nn.Module) -> None:
    """Makes a model refuse a state dict that has nothing in common with it.

    mmengine only warns about keys that do not fit, and goes on with random weights.

    Args:
        model: The whole model; its next ``load_state_dict`` raises CheckpointError.
    """

    def check(_: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *__: Any) -> None:
        own = model.state_dict()
        if any(
            prefix + name in state_dict and state_dict[prefix + name].shape == tensor.shape
            for name, tensor in own.items()
        ):
            return
        raise CheckpointError(
            f'the checkpoint holds no weight of this {type(model).__name__}: its first name is '
            f'{next(iter(state_dict), "missing")!r}, expected names such as {next(iter(own))!r}; '
            'use the config it was trained with'
        )

    model.register_load_state_dict_pre_hook(check)


def _located(config: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every data set config inside a loader's that says where files are."""
    for place, dataset in dataset_configs(config, where):
        if any(dataset.get(key) for key in ('data_root', 'data_prefix', 'ann_file')):
            yield place, dataset


def _check_dataset(cfg: Config, where: str, dataset: Mapping[str, Any]) -> None:
    if dataset.get('backend_args') or _looks_after_itself(cfg, dataset):
        return
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or {}
    parts = list(prefix.values()) if isinstance(prefix, Mapping) else [prefix]
    for part in ('', *parts, dataset.get('ann_file')):
        path = os.path.join(root, part) if isinstance(part, str) else ''
        if path and '://' not in path and not Path(path).expanduser().exists():
            where_to = _remedy(cfg, where, root)
            raise DataError(f'{path.rstrip("/")} ({where}) does not exist: {where_to}')


def _looks_after_itself(cfg: Config, dataset: Mapping[str, Any]) -> bool:
    kind = dataset.get('type')
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        cls = registry.get(kind) if isinstance(kind, str) else kind
    if not callable(cls):
        return False
    download = inspect.signature(cls).parameters.get('download')
    if download is not None and dataset.get('download', download.default):
        return True
    return cls.__module__.split('.')[0] == __name__.split('.')[0]


def _remedy(cfg: Config, where: str, root: str) -> str:
    asked = cfg.get('prepare_data')
    if asked:
        words = asked if isinstance(asked, str) else command('data prepare', *asked)
        return f'make it with {words}'
    known = _prepare_command(Path(root))
    if known and Path(root).expanduser().exists():
        return f'see what else is missing with {known} --check'
    if known:
        return f'make it with {known}'
    setting = f'{where}.data_root' if root else f'data_root or data_prefix of {where}'
    return f'put the data there, or set {setting} to where they are'


def _prepare_command(root: Path) -> str:
    """The command that makes a folder of images and label maps; '' for a folder nobody knows."""
    for source in SOURCES.values():
        # Our own data sets of listed images look for their files themselves.
        if not all(isinstance(split, PairSplit) for split in source.splits):
            continue
        if root.name == source.name:
            return command('data prepare', source.name, root)
        # One entry is the data set; several (images, annotations) are anybody's names.
        parts = Path(source.entries[0]).parts
        if len(source.entries) == 1 and root.parts[-len(parts) :] == parts:
            folder = Path(*root.parts[: -len(parts)])
            return command('data prepare', source.name, folder)
    return ''


def _pretrained(config: Any, where: str) -> Iterator[tuple[str, str]]:
    """Every pretrained weight file that a model config names."""
    if isinstance(config, Mapping):
        if config.get('type') == 'Pretrained' and config.get('checkpoint'):
            yield f'{where}.checkpoint', str(config['checkpoint'])
        if isinstance(config.get('pretrained'), str):
            yield f'{where}.pretrained', config['pretrained']
        for key, value in config.items():
            yield from _pretrained(value, f'{where}.{key}')
    elif isinstance(config, list | tuple):
        for position, entry in enumerate(config):
            yield from _pretrained(entry, f'{where}.{position}')
