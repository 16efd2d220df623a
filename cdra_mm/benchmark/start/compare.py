"""The start of a run with the hook, beside what OpenMMLab takes for the same run without it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from cdra_mm.errors import ConfigError

from ..timing import measure, paired_ratio
from .inputs import REPOSITORY, StartCase, make_case
from .stages import FITTING, SCORING

__all__ = ['WAYS', 'compare_starts', 'openmmlab_script', 'summed']

STOCK, PLAIN, ADAPTED = 'OpenMMLab', 'ours, no hook', 'ours, CDRA'
WAYS = (STOCK, PLAIN, ADAPTED)
CLOCKS = ('seconds', 'cpu_seconds')
# mmengine takes no hook out that a base has put in; this one does nothing in a single process.
STOCK_CONFIG = """_base_ = {base!r}
custom_imports = None
default_hooks = dict(cdra=dict(_delete_=True, type='SyncBuffersHook'))
"""


def openmmlab_script() -> Path:
    """The training script that mmsegmentation brings along.

    Raises:
        ConfigError: If there is none.
    """
    spec = importlib.util.find_spec('mmseg')
    script = Path(spec.origin or '').parent / '.mim/tools/train.py' if spec else None
    if script is None or not script.is_file():
        raise ConfigError(
            'start: mmsegmentation with its tools/train.py is not installed: pip install '
            '"cdra-mm[onedl]"'
        )
    return script


def compare_starts(name: str, *, repeats: int, warmup: int, seed: int) -> dict[str, Any]:
    """Starts a run in each way, in turn, up to as many steps as its scored images make.

    Args:
        name: Of a case of `inputs`.
        repeats: Rounds that count.
        warmup: Rounds before them.
        seed: Seed of what is generated, and of the orders.

    Returns:
        The record: of each way the median seconds of its stages, their sum, what it has added to
        OpenMMLab's without its scoring and the head's fit, and the scoring relative to OpenMMLab's
        own steps over as many images.

    Raises:
        ConfigError: If something that it needs is missing, or a run fails.
    """
    script = openmmlab_script()
    with tempfile.TemporaryDirectory(prefix='cdra_start_') as folder:
        case = make_case(name, Path(folder), seed)
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}

        def run(way: str) -> float:
            found[way].append(run_once(case, way, script, Path(folder)))
            return summed(found[way][-1])['seconds']

        measure(
            {way: partial(run, way) for way in WAYS},
            device='cpu',
            repeats=repeats,
            warmup=warmup,
            seed=seed,
            clock=lambda candidate, _: float(candidate()),
        )
    kept = {way: reports[warmup:] for way, reports in found.items()}
    return {
        'benchmark': 'start',
        'run': name,
        'reduced': case.reduced,
        'device': 'cpu',
        'repeats': repeats,
        'seed': seed,
        'candidates': {way: summary(reports, kept[STOCK]) for way, reports in kept.items()},
        'skipped': {},
    }


def run_once(case: StartCase, way: str, script: Path, folder: Path) -> dict[str, Any]:
    """One run as a process of its own: what `traced` has written.

    Raises:
        ConfigError: If it fails.
    """
    out, config, options = folder / 'report.json', case.config, list(case.options)
    if way == STOCK:
        config = folder / 'without_hook.py'
        config.write_text(STOCK_CONFIG.format(base=str(case.config)), encoding='utf-8')
    else:
        script = REPOSITORY / 'tools/train.py'
        hook = 'default_hooks.cdra'
        options.append(f'{hook}=None' if way == PLAIN else f'{hook}.num_samples={case.images}')
    with tempfile.TemporaryDirectory(dir=folder) as work_dir:
        words = [str(config), '--work-dir', work_dir, '--cfg-options', *options]
        steps = str(case.images // case.batch)
        traced = [sys.executable, '-m', f'{__package__}.traced']
        paths = [str(REPOSITORY), os.environ.get('PYTHONPATH', '')]
        result = subprocess.run(
            [*traced, str(out), repr(time.time()), steps, str(script), *words],
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                **case.environment,
                'PYTHONPATH': os.pathsep.join(filter(None, paths)),
                'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', '1'),
            },
        )
    if result.returncode:
        raise ConfigError(f'{case.name}, {way}: the run fails: {result.stderr.strip()[-400:]}')
    report: dict[str, Any] = json.loads(out.read_text(encoding='utf-8'))
    out.unlink()
    return report


def summed(report: Mapping[str, Any], *without: str) -> dict[str, float]:
    """Seconds from the command to the first iteration, by both clocks.

    Args:
        report: What `traced` has written.
        *without: Stages to leave out.
    """
    stages = [spent for name, spent in report['stages'].items() if name not in without]
    return {clock: sum(spent[clock] for spent in stages) for clock in CLOCKS}


def summary(
    reports: Sequence[Mapping[str, Any]], stock: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The rounds of one way, those of OpenMMLab in the same order beside them."""
    names = list(dict.fromkeys(name for report in reports for name in report['stages']))
    nothing = dict.fromkeys(CLOCKS, 0.0)
    entry: dict[str, Any] = {
        'stages': {
            name: {c: median(r['stages'].get(name, nothing)[c] for r in reports) for c in CLOCKS}
            for name in names
        },
        'steps': {c: median(r['steps'][c] for r in reports) for c in CLOCKS},
        'peak_bytes': max(report['peak_bytes'] for report in reports),
    }
    pairs = list(zip(reports, stock, strict=True))
    for clock in CLOCKS:
        entry[clock] = median(summed(report)[clock] for report in reports)
        entry[f'added_{clock}'] = median(
            summed(own, SCORING, FITTING)[clock] - summed(other)[clock] for own, other in pairs
        )
        if SCORING in names:
            scored = [own['stages'][SCORING][clock] for own, _ in pairs]
            ratio = paired_ratio(scored, [other['steps'][clock] for _, other in pairs])
            entry[f'scoring_{clock}_ratio_vs_steps'] = ratio.median
            entry[f'scoring_{clock}_ratio_vs_steps_quartiles'] = [ratio.low, ratio.high]
    return entry
