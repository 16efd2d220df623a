"""The file of a study in memory, such as ``configs/tables/study_cpu.py``.

It is a config of mmengine, like a grid's (`grid_file`), told from one by its ``weights``, and holds

- ``title``; ``seeds``; ``search_seeds``, so many of which, the first, search (1); ``weights``, a
  file of DeiT-Tiny in timm's names; ``iterations`` of every training; ``head_rate``; ``rates``, a
  rising ladder.
- ``methods``: name of a row -> ``dict(title, family, method=dict(type=..., **settings))``, or
  ``peft=dict(peft_type=..., **settings)`` in place of ``method`` for a tuner of peft's, and
  ``rate``, where on the ladder its search begins, None for a row that trains nothing of the
  backbone. ``rules`` (of `GradientRules`), ``start``, ``head_iterations``, ``base_dtype``,
  ``rate_factors``, ``gradient`` and ``again`` as `Recipe` has them.
  An entry that is empty, such as ``dict(_delete_=True)`` over one of a base, is no row (no task).
- ``tasks``: name -> ``dict(title, metric, folder, kind, size, batch, test)``. ``kind`` is
  ``'vtab'`` (``test``: so many test images) or ``'dense'`` (``test``: every so many-th; ``void``:
  the label without a class). ``head_iterations`` is that of all rows that have none of their own.
- ``remembered``, for what a training forgets: ``dict(folder, images)``, the first so many
  test images of a folder in VTAB's layout.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cdra_mm.benchmark.small_tasks import Task as Data
from cdra_mm.benchmark.small_tasks import read_dense, read_vtab
from cdra_mm.core.planning.offers import GradientRules
from cdra_mm.errors import ConfigError
from cdra_mm.spelling import unknown

from .grid import Grid, Row, Task, narrow_seeds, pick, read_seeds
from .grid_file import check_keys, read_content
from .small_recipes import Recipe

__all__ = ['SmallStudy', 'is_small_study', 'read_small_study']

RATE = 'rate'  # the key of the setting that is searched for
HEAD = 'head_iterations'
PLAIN = ('start', HEAD, 'base_dtype', 'rate_factors', 'gradient', 'again')
RECIPE = ('rate', 'rules', *PLAIN)
KEYS = {
    'study': (
        'title', 'methods', 'tasks', 'seeds', 'weights', 'iterations', 'head_rate', 'rates',
        'search_seeds', 'remembered',
    ),
    'method': ('title', 'family', 'method', 'peft', *RECIPE),
    'task': ('title', 'metric', 'folder', 'kind', 'size', 'batch', 'test', 'void', HEAD),
}  # fmt: skip


@dataclass(frozen=True)
class SmallStudy:
    """A study that is read.

    Attributes:
        grid: Rows, tasks and seeds, as tables and reports have them.
        recipes: What each row trains, whatever the task; see `recipe`.
        begins: Where on the ladder each row's search begins; None for nothing to search.
        tasks: What the file says of each task.
        rates: The ladder, rising.
        weights: File of the backbone.
        iterations: Of every training.
        head_rate: Of the head in every training.
        remembered: What the file says of the images to see what is forgotten by.
    """

    grid: Grid
    recipes: Mapping[str, Recipe]
    begins: Mapping[str, float | None]
    tasks: Mapping[str, Mapping[str, Any]]
    rates: tuple[float, ...]
    weights: str
    iterations: int
    head_rate: float
    remembered: Mapping[str, Any] | None = None

    def narrow(
        self,
        methods: Sequence[str] | None = None,
        tasks: Sequence[str] | None = None,
        seeds: Sequence[Any] | None = None,
        search_seeds: int | None = None,
    ) -> SmallStudy:
        """The part that is asked for, None for all of it.

        Raises:
            ConfigError: If a name is unknown, a seed is none, or there are fewer than search.
        """
        grid = replace(
            self.grid,
            rows=pick('method', self.grid.rows, methods),
            tasks=pick('task', self.grid.tasks, tasks),
        )
        return replace(self, grid=narrow_seeds(grid, seeds, search_seeds))

    def recipe(self, row: str, task: str) -> Recipe:
        """What a row trains on a task."""
        recipe = self.recipes[row]
        head = recipe.head_iterations or self.tasks[task].get(HEAD, 0)
        return replace(recipe, head_iterations=head)

    def data(self, task: str) -> Data:
        """Reads the images of a task.

        Raises:
            DataError: If a list has a fault.
        """
        entry = self.tasks[task]
        folder, size, test = Path(entry['folder']), entry['size'], entry.get('test', 0)
        if entry['kind'] == 'vtab':
            return read_vtab(folder, size, tested=test)
        return read_dense(folder, size, entry.get('void'), every=test)

    def remembered_images(self, task: str) -> Tensor | None:
        """Those of `remembered`, of the size of a task's images, uint8 ``[N, 3, S, S]``.

        Raises:
            DataError: If a list has a fault.
        """
        if self.remembered is None:
            return None
        # A backbone takes images of one size: that of the task.
        given, size = self.remembered, self.tasks[task]['size']
        read = read_vtab(Path(given['folder']), size, tested=given['images'])
        return None if read.test is None else read.test[0]


def is_small_study(path: Path) -> bool:
    """Whether a file of tables is one of these.

    Raises:
        ConfigError: If it cannot be read.
    """
    return 'weights' in read_content(path)


def read_small_study(path: Path) -> SmallStudy:
    """Reads the file of a study.

    Raises:
        ConfigError: If it cannot be read, or an entry is wrong.
    """
    content = read_content(path)
    where = f'study {path}'
    check_keys(where, content, KEYS['study'], required=KEYS['study'][1:-2])
    rates = tuple(content['rates'])
    if list(rates) != sorted(set(rates)) or not rates or rates[0] <= 0:
        raise ConfigError(f'{where}: rates={list(rates)}: expected rising numbers above 0')
    remembered = content.get('remembered')
    if remembered is not None:
        needed = ('folder', 'images')
        check_keys(f'remembered of the {where}', remembered, needed, required=needed)
    rows, recipes, begins = [], {}, {}
    for name, entry in content['methods'].items():
        if not entry:
            continue
        of_row = f'method {name!r} of the {where}'
        check_keys(of_row, entry, KEYS['method'], required=())
        if ('method' in entry) == ('peft' in entry):
            raise ConfigError(f'{of_row}: expected one of method and peft')
        _check_head(of_row, entry)
        begin = entry.get('rate', 1e-2)
        if begin is not None and begin not in rates:
            raise ConfigError(f'{of_row}: rate={begin}: expected one of rates, or None')
        rules = entry.get('rules')
        recipes[name] = Recipe(
            entry.get('method', {}),
            entry.get('peft'),
            None if rules is None else GradientRules(**rules),
            **{name: entry[name] for name in PLAIN if name in entry},
        )
        begins[name] = begin
        search = {} if begin is None else {RATE: rates}
        title, family = entry.get('title', name), entry.get('family', '')
        rows.append(Row(name, title, family, entry.get('method', {}), {}, search))
    tasks = []
    for name, entry in content['tasks'].items():
        if not entry:
            continue
        of_task = f'task {name!r} of the {where}'
        check_keys(
            of_task, entry, KEYS['task'], required=('metric', 'folder', 'kind', 'size', 'batch')
        )
        if entry['kind'] not in ('vtab', 'dense'):
            raise ConfigError(unknown(f'{of_task}: kind', entry['kind'], ('vtab', 'dense'), ''))
        _check_head(of_task, entry)
        metric = {entry['metric']: entry['metric']}
        report = 'test' if entry.get('test') else 'validation'
        tasks.append(Task(name, entry.get('title', name), Path(), metric, report))
    grid = Grid(
        path.stem,
        content.get('title', path.stem),
        tuple(rows),
        tuple(tasks),
        read_seeds(content['seeds']),
        search_seeds=content.get('search_seeds', 1),
    )
    return SmallStudy(
        grid, recipes, begins, content['tasks'], rates, content['weights'],
        content['iterations'], content['head_rate'], remembered,
    )  # fmt: skip


def _check_head(where: str, entry: Mapping[str, Any]) -> None:
    head = entry.get(HEAD, 0)
    if not isinstance(head, int) or head < 0:
        raise ConfigError(f'{where}: {HEAD}={head!r}: expected a count of at least 0')
