"""Runs the benchmarks that a command line asks for."""

from __future__ import annotations

import argparse
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdra_mm.errors import ConfigError
from cdra_mm.sizing.block_sizes import KINDS, make_block_plan
from cdra_mm.spelling import unknown

from .arguments import BENCHMARKS, DEFAULTS, ENTRIES, MODELS, PEER_NAMES, nearest
from .base_types import compare_bases
from .case import Case, build_vit, check_vit
from .growth import Point, compare_growth, points
from .inference import compare_inference
from .launches import compare_launches
from .planning_time import compare_planning
from .report import Results, machine_line, render
from .scoring_time import compare_scores
from .start.compare import compare_starts, openmmlab_script
from .step import compare_steps
from .step_memory import compare_memory
from .strategies import compare_strategies
from .timing import is_out_of_memory

__all__ = ['main']

Build = Callable[[str, int], nn.Module]
GROWTH_BATCH, GROWTH_REPEATS = {'cpu': 1, 'cuda': 32}, {'cpu': 3, 'cuda': 15}
PLANNING_REPEATS = 3  # at most: a run takes seconds, and nothing is compared
ONE_TABLE = ('growth',)


def main(arguments: argparse.Namespace, *, build: Build = build_vit) -> None:
    """Runs the benchmarks, prints their tables and writes the JSON file.

    Args:
        arguments: What `arguments.parser` read.
        build: Makes the models, ``build(name, image_size)``.

    Raises:
        ConfigError: If an option is wrong; nothing has run then.
    """
    settings = checked(arguments)
    chosen = BENCHMARKS if settings['benchmark'] == 'all' else (settings['benchmark'],)
    cases = list(cases_of(settings, build))
    check_cases(cases, settings['blocks'])
    if settings['threads']:
        torch.set_num_threads(settings['threads'])
    results = Results(settings['json'], settings, settings['device'])
    print(machine_line(results.content['machine']), flush=True)
    for name in chosen:
        shown: list[dict[str, Any]] = []
        try:
            for job in JOBS[name](settings, cases):
                shown.append(run_job(job))
                results.add(shown[-1])
                if name not in ONE_TABLE:
                    print(f'\n{render(shown[-1:])}', flush=True)
        finally:
            if name in ONE_TABLE and shown:
                print(f'\n{render(shown)}', flush=True)
    results.finish()
    if settings['json']:
        print(f'\n{settings["json"]} written')


@dataclass(frozen=True)
class Job:
    """One record to make.

    Attributes:
        setting: What is known of the record before it runs.
        run: Makes it.
    """

    setting: dict[str, Any]
    run: Callable[[], dict[str, Any]]


def run_job(job: Job) -> dict[str, Any]:
    """The job's record; where not even its model fits into memory, a record that says so."""
    try:
        return job.run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        reason = f'out of memory: {error}'.partition('\n')[0]
        return {**job.setting, 'candidates': {}, 'skipped': {'everything': reason}}


def checked(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings with the defaults of the device.

    Raises:
        ConfigError: If one is wrong.
    """
    settings = dict(vars(arguments))
    device = settings['device'] or ('cuda' if torch.cuda.is_available() else 'cpu')
    if device == 'cuda' and not torch.cuda.is_available():
        raise ConfigError('--device cuda: PyTorch sees no GPU here; use --device cpu')
    settings['device'] = device
    for key, value in DEFAULTS[device].items():
        if settings[key] is None:
            settings[key] = value
    settings['model'] = _known('model', settings['model'], MODELS)
    settings['entries'] = [_known('--entries', word, ENTRIES) for word in settings['entries']]
    peers = [word.strip() for word in settings['peers'].split(',') if word.strip()]
    peers = [] if peers == ['none'] else [_known('peer', word, PEER_NAMES) for word in peers]
    settings['peers'] = peers
    least = {'repeats': 1, 'warmup': 0, 'batch': 1, 'threads': 1}
    for key, lowest in least.items():
        value = settings[key]
        for number in value if isinstance(value, list) else [value]:
            if number is not None and number < lowest:
                raise ConfigError(f'--{key} {number}: expected at least {lowest}')
    for kind in settings['blocks']:
        path = Path(kind.partition('@')[0])
        if kind not in KINDS and path.suffix != '.npz':
            raise ConfigError(unknown('--blocks', kind, [*KINDS, 'PATH.npz']))
        if kind not in KINDS and not path.is_file():
            raise ConfigError(f'--blocks {kind}: there is no such file')
    return settings


def _known(what: str, word: str, known: Sequence[str]) -> str:
    found = nearest(word, known)
    if found is None:
        raise ConfigError(unknown(what, word, known))
    return found


def cases_of(settings: dict[str, Any], build: Build) -> Iterator[Case]:
    """A case for each image size and batch."""
    keys = ('model', 'dtype', 'device', 'repeats', 'warmup', 'seed', 'threads')
    base = Case(**{key: settings[key] for key in keys}, build=build)
    for size, batch in product(settings['image_size'], settings['batch']):
        yield replace(base, image_size=size, batch=batch)


def check_cases(cases: Sequence[Case], blocks: Sequence[str]) -> None:
    """Finds out what does not fit together, before any long work."""
    for case in {case.image_size: case for case in cases}.values():
        if case.build is build_vit:
            check_vit(case.image_size)
        for kind in blocks:
            if kind not in KINDS:
                make_block_plan(case.build(case.model, case.image_size), kind)


Jobs = Iterator[Job]


# What is compared at each case, and by which settings.
COMPARED: dict[str, tuple[Callable[..., dict[str, Any]], tuple[str, ...]]] = {
    'scores': (compare_scores, ('peers',)),
    'step': (compare_steps, ('blocks', 'peers')),
    'launches': (compare_launches, ('blocks', 'peers')),
    'memory': (compare_memory, ('blocks', 'peers')),
    'bases': (compare_bases, ('blocks',)),
    'strategies': (compare_strategies, ('blocks',)),
    'inference': (compare_inference, ('blocks', 'peers')),
}


def _compared(name: str, settings: dict[str, Any], cases: Sequence[Case]) -> Jobs:
    compare, wanted = COMPARED[name]
    for case in cases:
        run = partial(compare, case, **{key: settings[key] for key in wanted})
        yield Job({'benchmark': name, **case.describe()}, run)


def _planning(settings: dict[str, Any], cases: Sequence[Case]) -> Jobs:
    options = {key: settings[key] for key in ('device', 'seed', 'threads')}
    options['repeats'] = min(settings['repeats'], PLANNING_REPEATS)
    for entries in settings['entries']:
        setting = {'benchmark': 'planning', 'entries': entries, **options}
        yield Job(setting, partial(compare_planning, entries, **options))


def _growth(settings: dict[str, Any], cases: Sequence[Case]) -> Jobs:
    device = settings['device']
    # The axes set sizes of their own, around the first case with a batch that suits them all.
    repeats = min(cases[0].repeats, GROWTH_REPEATS[device])
    middle = replace(cases[0], batch=GROWTH_BATCH[device], repeats=repeats)
    # The axes meet in one setting, which is measured once.
    measured = functools.cache(partial(compare_growth, peers=tuple(settings['peers'])))
    for point in points(middle):
        place = {'axis': point.axis, 'value': point.value}
        setting = {'benchmark': 'growth', **place, **point.case.describe()}
        yield Job(setting, partial(_placed, measured, point, place))


def _starts(settings: dict[str, Any], cases: Sequence[Case]) -> Jobs:
    openmmlab_script()  # before any long work
    options = {key: settings[key] for key in ('repeats', 'warmup', 'seed')}
    for name in settings['runs']:
        setting = {'benchmark': 'start', 'run': name, **options}
        yield Job(setting, partial(compare_starts, name, **options))


def _placed(measured: Callable[..., Any], point: Point, place: dict[str, str]) -> dict[str, Any]:
    return {**place, **measured(point.case, scale=point.scale, share=point.share), **place}


JOBS: dict[str, Callable[[dict[str, Any], Sequence[Case]], Jobs]] = {
    **{name: partial(_compared, name) for name in COMPARED},
    'planning': _planning,
    'growth': _growth,
    'start': _starts,
}
