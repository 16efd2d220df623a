"""Names of packages in configs: ``_base_ = ['mmseg::...', 'cdra_mm::...']``."""

from __future__ import annotations

from collections import defaultdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import init_default_scope

from cdra_mm.errors import ConfigError
from cdra_mm.spelling import did_you_mean

from .host.runner_parts import packages, set_package

__all__ = ['bases', 'drop_own_scope', 'find_config', 'register_packages', 'set_default_scope']

SCOPE = __name__.partition('.')[0]
# Where OpenMMLab's packages carry their configs; ours leads to configs/ of the repository.
CONFIGS = Path(__file__).resolve().parents[1] / '.mim' / 'configs'


def register_packages() -> None:
    """Lets ``package::`` bases find the maintained forks of OpenMMLab, and our own configs.

    mmengine looks the configs of a package up under the name of a distribution, from a table of
    its own. That table knows the original distributions alone: with ``onedl-mmsegmentation``
    ``mmseg::`` fails, and it has no entry for us. Nothing else is changed, an original
    distribution that is installed keeps its entry, and a second call finds nothing to do.
    """
    for module, package in packages().items():
        fork = f'onedl-{package}'
        if find_spec(module) and not _is_distribution(package) and _is_distribution(fork):
            set_package(module, fork, replace=True)
    set_package(SCOPE, SCOPE)


def bases(*names: str) -> list[str]:
    """Bases for a config that other programs than ours read.

    OpenMMLab's own ``train.py`` imports nothing of ours before it reads a config, but it
    evaluates what stands behind ``_base_``, so that the config itself can.

    Args:
        names: Paths and ``package::`` names, as in ``_base_``.

    Returns:
        The same, ours as absolute paths; those of other packages can be found now.

    Raises:
        ConfigError: If a config of ours does not exist.

    Example:
        ``_base_ = __import__('cdra_mm').bases('cdra_mm::cdra/demo.py', './my_data.py')``
    """
    register_packages()
    return [_own_path(name) if name.startswith(f'{SCOPE}::') else name for name in names]


def find_config(name: str | Path) -> Path:
    """The file of a config.

    Args:
        name: A path, or what a shipped config is called: ``cdra/dinov2_ade20k``,
            ``cdra_mm::cdra/dinov2_ade20k.py``. A file in the way counts first.

    Raises:
        ConfigError: If there is neither; it lists what is shipped.
    """
    path = Path(name)
    if path.is_file():
        return path
    package, _, asked = str(name).rpartition('::')
    shipped = _shipped()
    key = asked.removesuffix('.py')
    if package in ('', SCOPE) and key in shipped:
        return CONFIGS / f'{key}.py'
    beside = [] if package else [p.name for p in path.parent.glob('*.py')]
    near = did_you_mean(path.name, beside) or did_you_mean(key, shipped)
    raise ConfigError(f'config {name} does not exist{near}; {_listed(shipped)}')


def _shipped() -> list[str]:
    """Names of the shipped configs that a run can start from."""
    # Behind an underscore lie parts of configs; grids of runs have a program of their own.
    paths = (path.relative_to(CONFIGS) for path in sorted(CONFIGS.glob('*/**/*.py')))
    return [
        path.with_suffix('').as_posix()
        for path in paths
        if not path.parts[0].startswith('_') and path.parts[0] != 'tables'
    ]


def _listed(names: list[str]) -> str:
    """Names in one line, those of a folder together.

    Example:
        >>> _listed(['a/x', 'a/y', 'b/z'])
        'shipped are a/{x, y}, b/{z}'
    """
    folders = defaultdict(list)
    for name in names:
        folder, _, stem = name.rpartition('/')
        folders[folder].append(stem)
    told = [f'{folder}/{{{", ".join(stems)}}}' for folder, stems in folders.items()]
    return f'shipped are {", ".join(told)}'


def drop_own_scope(cfg: Config) -> Config:
    """Takes the mark out that mmengine puts on all that comes from a ``cdra_mm::`` base.

    mmengine would look its types up among ours; they are mmseg's or mmpretrain's, as the config's
    ``default_scope`` says.
    """
    for value in cfg.values():
        _drop_scope(value)
    return cfg


def _drop_scope(value: Any) -> None:
    if isinstance(value, dict) and value.get('_scope_') == SCOPE:
        del value['_scope_']
    if isinstance(value, dict | list | tuple):
        for entry in value.values() if isinstance(value, dict) else value:
            _drop_scope(entry)


def _own_path(name: str) -> str:
    path = CONFIGS / name.partition('::')[2]
    if not path.is_file():
        known = [str(p.relative_to(CONFIGS)) for p in sorted(CONFIGS.glob('*/**/*.py'))]
        near = did_you_mean(name.partition('::')[2], known)
        raise ConfigError(f'{name}: there is no such config in {CONFIGS}{near}')
    return str(path)


def _is_distribution(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def set_default_scope(config: Any) -> None:
    """Has names of types looked up in the scope of a config from now on.

    Args:
        config: A config; with ``default_scope=None`` nothing is set, as in a run of that config:
            each class looks in its own package then.
    """
    scope = config.get('default_scope', 'mmengine')
    if scope is not None:
        init_default_scope(scope)
