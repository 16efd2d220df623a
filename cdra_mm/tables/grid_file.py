"""The file of a grid, such as ``configs/tables/vtab.py``.

A grid file is a config of mmengine, so that grids share their methods through ``_base_``. It holds

- ``title``: caption of the table.
- ``methods``: name of a row -> ``dict(title, family, method=dict(type=..., **settings), options,
  search)``. Rows of a family stand together, in the order of the file.
- ``tasks``: name -> ``dict(title, config, group, report, metrics, options, methods)``. ``config``
  is relative to the grid file. ``methods`` are settings of single methods, row -> settings, that
  the task needs otherwise. ``report`` says which figure the table shows: ``'final_run'`` that of
  ``tools/train.py CONFIG --final``, ``'test'`` that of ``tools/test.py`` after the training, and
  ``'validation'`` that of the last validation, for data without a labelled test split.
- ``metrics``: key in a run's metrics -> title. The first decides where settings are chosen;
  higher is better. A task's own take their place.
- ``seeds``; ``search_seeds``, so many of which, the first, choose settings (1); ``options``:
  settings of the config for every run; ``means``: whether a mean over tasks says anything.
- ``search``: setting of the config -> values to try on the validation split. A method's own are
  put over them, so that each method gets the same effort.

Settings are written as on a command line: ``{'optim_wrapper.optimizer.lr': 1e-3}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config

from cdra_mm.errors import ConfigError
from cdra_mm.spelling import did_you_mean, unknown

from .grid import Grid, Row, Task, read_seeds

__all__ = ['check_keys', 'find_grid', 'read_content', 'read_grid', 'read_rows']

REPORTS = ('final_run', 'test', 'validation')
KEYS = {
    'grid': (
        'title',
        'methods',
        'tasks',
        'metrics',
        'seeds',
        'search_seeds',
        'options',
        'search',
        'means',
    ),
    'method': ('title', 'family', 'method', 'options', 'search'),
    'task': ('title', 'config', 'group', 'report', 'metrics', 'options', 'methods'),
}


def find_grid(name: str, folder: Path) -> Path:
    """The grid file of a name in a folder, or of a path.

    Raises:
        ConfigError: If there is none.
    """
    path = Path(name)
    if path.suffix == '.py':
        if not path.is_file():
            raise ConfigError(f'grid {name} does not exist')
        return path
    known = {path.stem: path for path in sorted(folder.glob('*.py'))}
    if name not in known:
        raise ConfigError(
            f'table {name!r} is unknown{did_you_mean(name, known)}: expected one of '
            f'{", ".join(known) or f"(none found in {folder})"}, or the path of a grid file'
        )
    return known[name]


def read_grid(path: Path) -> Grid:
    """Reads a grid file.

    Raises:
        ConfigError: If it cannot be read, names what does not exist, or is empty.
    """
    content = read_content(path)
    check_keys(f'grid {path}', content, KEYS['grid'], required=('methods', 'tasks', 'metrics'))
    search = content.get('search', {})
    rows = tuple(_row(name, entry, search) for name, entry in content['methods'].items())
    tasks = tuple(
        _task(name, entry, content['metrics'], path.parent)
        for name, entry in content['tasks'].items()
    )
    names = [row.name for row in rows]
    for task in tasks:
        for name in task.methods:
            if name not in names:
                raise ConfigError(
                    f'task {task.name!r} of the grid has settings of method {name!r}, which is '
                    f'not in the grid{did_you_mean(name, names)}'
                )
    if not rows or not tasks:
        raise ConfigError(f'grid {path} is empty: expected at least one method and one task')
    return Grid(
        name=path.stem,
        title=content.get('title', path.stem),
        rows=rows,
        tasks=tasks,
        seeds=read_seeds(content.get('seeds', [0])),
        search_seeds=content.get('search_seeds', 1),
        options=_plain_options(content.get('options', {}), f'grid {path}'),
        means=bool(content.get('means', True)),
    )


def read_rows(path: Path) -> tuple[Row, ...]:
    """The methods of a file, without its tasks.

    Raises:
        ConfigError: If it cannot be read, or has none.
    """
    content = read_content(path)
    check_keys(f'grid {path}', content, KEYS['grid'], required=('methods',))
    return tuple(_row(name, entry, {}) for name, entry in content['methods'].items())


def read_content(path: Path) -> dict[str, Any]:
    """What a file of tables says.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        content: dict[str, Any] = Config.fromfile(path).to_dict()
    except Exception as error:  # a config is a program
        raise ConfigError(f'grid {path}: {type(error).__name__}: {error}') from error
    return content


def _row(name: str, entry: Any, search: Mapping[str, Any]) -> Row:
    where = f'method {name!r} of the grid'
    check_keys(where, entry, KEYS['method'], required=('method',))
    space = {**search, **entry.get('search', {})}
    for key, values in space.items():
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(f'{where}: search of {key} is {values!r}, expected a list of values')
        _plain_options({key: values[0]}, where)
    # One value is no choice: it is set, not tried on its own.
    fixed = {key: values[0] for key, values in space.items() if len(values) == 1}
    return Row(
        name=name,
        title=entry.get('title', name),
        family=entry.get('family', ''),
        method=entry['method'],
        options=_plain_options({**fixed, **entry.get('options', {})}, where),
        search={key: values for key, values in space.items() if key not in fixed},
    )


def _task(name: str, entry: Any, metrics: Mapping[str, str], folder: Path) -> Task:
    where = f'task {name!r} of the grid'
    check_keys(where, entry, KEYS['task'], required=('config', 'report'))
    if entry['report'] not in REPORTS:
        raise ConfigError(
            f'{where}: report={entry["report"]!r}, expected one of {", ".join(REPORTS)}'
        )
    return Task(
        name=name,
        title=entry.get('title', name),
        config=(folder / entry['config']).resolve(),
        metrics=entry.get('metrics', metrics),
        report=entry['report'],
        group=entry.get('group', ''),
        options=_plain_options(entry.get('options', {}), where),
        methods=entry.get('methods', {}),
    )


def check_keys(where: str, entry: Any, keys: Sequence[str], required: Sequence[str]) -> None:
    """Checks the entries of a dict of such a file.

    Raises:
        ConfigError: If it is no dict, has another entry than `keys`, or lacks a required one.
    """
    if not isinstance(entry, Mapping):
        raise ConfigError(f'{where} is {entry!r}, expected a dict')
    for key in entry:
        if key not in keys:
            raise ConfigError(unknown(f'{where} has an entry', key, keys, ''))
    for key in required:
        if key not in entry:
            raise ConfigError(f'{where} has no entry {key!r}')


def _plain_options(options: Any, where: str) -> dict[str, Any]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            raise ConfigError(
                f'{where}: option {key}={value!r} is a dict; write its settings one by one, '
                f'as {key}.name=value'
            )
    return dict(options)
