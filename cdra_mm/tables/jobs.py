"""The runs of a grid: each with its settings, its own folder and its command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from cdra_mm.errors import ConfigError

from .grid import Grid, Row, Task

__all__ = ['Commands', 'Job', 'choose', 'final_jobs', 'search_jobs']

HOOK = 'default_hooks.cdra'
UNSAFE = str.maketrans({c: '_' for c in '/\\ \t\n:*?"\'<>|'})


@dataclass(frozen=True)
class Job:
    """One training run, with the test after it where the task reports one.

    Attributes:
        row: The method.
        task: The data set.
        seed: Of weights, order of the data and samples scored.
        stage: ``'search'`` on the validation split, or ``'final'``.
        chosen: Settings tried or chosen.
        options: All settings of the config, `chosen` included.
        folder: Its work directory.
    """

    row: Row
    task: Task
    seed: int
    stage: str
    chosen: Mapping[str, Any]
    options: Mapping[str, Any]
    folder: Path

    @property
    def label(self) -> str:
        """What a reader wants to know about it.

        The settings that were chosen are named in a search only, where they differ.
        """
        tried = ' '.join(_named(self.chosen).values()) if self.stage == 'search' else ''
        return ' '.join(
            word for word in (self.row.name, self.task.name, f'seed {self.seed}', tried) if word
        )

    @property
    def tested(self) -> bool:
        """Whether ``tools/test.py`` runs after the training."""
        return self.stage == 'final' and self.task.report == 'test'

    @property
    def is_final_run(self) -> bool:
        """Whether its config is changed by the config's own ``final_run``."""
        return self.stage == 'final' and self.task.report == 'final_run'

    @property
    def option_texts(self) -> list[str]:
        """Its settings as ``--cfg-options`` takes them."""
        return [f'{key}={option_text(value)}' for key, value in self.options.items()]

    @property
    def metrics(self) -> str:
        """Where its figures stand in ``summary.json``."""
        return 'test_metrics' if self.tested else 'metrics'

    @property
    def identity(self) -> dict[str, Any]:
        """What makes two runs the same run; plain values, without paths of this machine."""
        return {
            'task': self.task.name,
            'config': '/'.join(self.task.config.parts[-2:]),
            'stage': self.stage,
            'report': self.task.report,
            'options': {key: option_text(value) for key, value in self.options.items()},
        }


def search_jobs(grid: Grid, out: Path) -> list[Job]:
    """The runs from which settings are chosen: every combination, with each seed that chooses."""
    return [
        _job(grid, row, task, seed, 'search', chosen, out)
        for task, row in product(grid.tasks, grid.rows)
        for chosen in _combinations(row.search)
        for seed in grid.choosing
    ]


def final_jobs(grid: Grid, row: Row, task: Task, chosen: Mapping[str, Any], out: Path) -> list[Job]:
    """The runs that the table shows: one a seed, with the settings chosen."""
    return [_job(grid, row, task, seed, 'final', chosen, out) for seed in grid.seeds]


def _combinations(space: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*space.values()) if space else ():
        yield dict(zip(space, values, strict=True))


def _job(
    grid: Grid,
    row: Row,
    task: Task,
    seed: int,
    stage: str,
    chosen: Mapping[str, Any],
    out: Path,
) -> Job:
    method = {**row.method, **task.methods.get(row.name, {})}
    options = {
        f'{HOOK}.type': 'cdra_mm.CDRAHook',
        **{f'{HOOK}.method.{key}': value for key, value in method.items()},
        **grid.options,
        **task.options,
        **row.options,
        **grid.overrides,
        **chosen,
        'randomness.seed': seed,
        f'{HOOK}.seed': seed,
    }
    tried = [text.translate(UNSAFE) for text in _named(chosen).values()]
    name = ','.join([stage, *(tried if stage == 'search' else ()), f'seed{seed}'])
    return Job(row, task, seed, stage, chosen, options, out / row.name / task.name / name)


def _named(options: Mapping[str, Any]) -> dict[str, str]:
    """``name=value`` of each setting, with as much of its dotted name as tells it apart.

    Example:
        >>> list(_named({'optimizer.lr': 0.1, 'head.lr': 0.2, 'a.rank': 8}).values())
        ['optimizer.lr=0.1', 'head.lr=0.2', 'rank=8']
    """
    named = {}
    for key, value in options.items():
        parts = key.split('.')
        for count in range(1, len(parts) + 1):
            short = '.'.join(parts[-count:])
            if sum(f'.{other}'.endswith(f'.{short}') for other in options) == 1:
                break
        named[key] = f'{short}={option_text(value)}'
    return named


def option_text(value: Any) -> str:
    """A value as ``--cfg-options`` reads it.

    Raises:
        ConfigError: If the command line cannot say it.

    Example:
        >>> option_text([0.5, 'a']), option_text((96, 96)), option_text(None)
        ('[0.5,a]', '(96,96)', 'None')
    """
    if isinstance(value, list | tuple):
        left, right = '()' if isinstance(value, tuple) else '[]'
        return f'{left}{",".join(option_text(entry) for entry in value)}{right}'
    if isinstance(value, Mapping):
        raise ConfigError(f'setting {value!r} is a dict: write its entries one by one')
    return str(value)


@dataclass(frozen=True)
class Commands:
    """How jobs are started.

    Attributes:
        tools: Folder of train.py and test.py.
        python: The interpreter.
        launcher: Words put before every command, such as ``srun --gres=gpu:1``.
        processes: Value of ``--launcher`` of train.py and test.py.
    """

    tools: Path
    python: str
    launcher: Sequence[str] = ()
    processes: str = 'none'

    def train(self, job: Job, *, resume: bool = False) -> list[str]:
        """The command that trains a job."""
        flags = {'--final': job.is_final_run, '--resume': resume}
        given = [flag for flag, wanted in flags.items() if wanted]
        return self._command('train.py', job, [], given)

    def test(self, job: Job, checkpoint: str) -> list[str]:
        """The command that tests its checkpoint."""
        return self._command('test.py', job, [checkpoint], [])

    def _command(self, tool: str, job: Job, inputs: list[str], flags: list[str]) -> list[str]:
        words = [*self.launcher, self.python, str(self.tools / tool), str(job.task.config)]
        words += [*inputs, '--work-dir', str(job.folder), *flags]
        if self.processes != 'none':
            words += ['--launcher', self.processes]
        return [*words, '--cfg-options', *job.option_texts]


def choose(tried: Sequence[tuple[Job, Mapping[str, float]]]) -> tuple[dict[str, Any], float]:
    """The settings with the best first metric, the mean over the seeds that choose.

    Of equals those that were declared first are taken.

    Args:
        tried: The search runs of one method on one task, and their validation figures.

    Returns:
        The settings and their figure.

    Raises:
        ValueError: If nothing was tried.
    """
    if not tried:
        raise ValueError('nothing was tried')
    decisive = next(iter(tried[0][0].task.metrics))
    figures: dict[str, list[float]] = {}
    chosen: dict[str, Mapping[str, Any]] = {}
    for job, found in tried:
        name = ','.join(_named(job.chosen).values())
        chosen[name] = job.chosen
        figures.setdefault(name, []).append(found[decisive])
    means = {name: fmean(values) for name, values in figures.items()}
    best = max(means, key=lambda name: means[name])  # max keeps the first
    return dict(chosen[best]), means[best]
