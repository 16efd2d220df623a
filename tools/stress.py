"""Kills a small run again and again, resumes it each time, and compares with one left alone.

A run of the demo (two batches per step, averaged weights, a checkpoint every third iteration) gets
SIGKILL while it is scored, trained and saved, and is resumed with the same command and --resume
until it is done; then the next run is begun, until all kills are spent. At the end of each run
every weight, average and optimizer state must equal those of the uninterrupted run, one best
checkpoint must be there and whole, and no resume may go on from less than the last checkpoint.

Then tools/merge.py gets SIGKILL while it writes what is made of a checkpoint, in each format, into
the run's work directory: what lay there must be there still, or the new file whole; and the next
export or training there must go on and leave nothing half written. Most of the time is starting
Python.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from stressed.comparing import differing
from stressed.exporting import kill_exports, print_exports
from stressed.killing import REPOSITORY, finish
from stressed.training import Kill, StressedRun, one_round, print_kills

from cdra_mm.command_line import run

WEIGHTS = REPOSITORY / 'assets/vit_tiny32_in200.pth'


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--kills', type=int, default=30, help='of training; default: 30')
    parser.add_argument('--export-kills', type=int, default=10, help='default: 10')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--root', type=Path, default='data/demo', help='data; made when missing')
    parser.add_argument('--work-dir', type=Path, default='work_dirs/stress', help='made anew')
    parser.add_argument('--json', type=Path, help='default: stress.json among them')
    args = parser.parse_args()
    for name in ('kills', 'export_kills'):
        if getattr(args, name) < 0:
            parser.error(f'--{name.replace("_", "-")}: expected 0 or more')
    return args


def main() -> None:
    args = parse_args()

    from cdra_mm.data import prepare
    from cdra_mm.storage import write_text

    prepare('demo', args.root)
    remove_rounds(args.work_dir)
    environment = {
        **os.environ,
        'CDRA_DEMO_ROOT': str(args.root.resolve()),
        'CDRA_VIT_TINY32': os.environ.get('CDRA_VIT_TINY32', str(WEIGHTS)),
        'OMP_NUM_THREADS': '1',
        'PYTHONUNBUFFERED': '1',
    }
    begin = time.time()
    reference = StressedRun(args.work_dir / 'round_0', environment)
    finish(reference.start(), reference.log)
    length = time.time() - begin
    print(f'uninterrupted run: {length:.0f} s')
    moments = random.Random(args.seed)
    kills: list[Kill] = []
    differences: list[str] = []
    number = 0
    while len(kills) < args.kills:
        number += 1
        stressed = StressedRun(args.work_dir / f'round_{number}', environment)
        kills += one_round(stressed, args.kills - len(kills), moments, length)
        found = [*differing(reference.final, stressed.final), *stressed.best_faults()]
        differences += [f'round {number}: {name}' for name in found]
        print(f'round {number}: {len(kills)} of {args.kills} kills, '
              f'{len(differences)} tensors differ')  # fmt: skip
        if not differences:
            shutil.rmtree(stressed.folder)
    exports = kill_exports(reference, args.export_kills, moments) if args.export_kills else []
    result = {
        'kills': [asdict(kill) for kill in kills],
        'stages': dict(Counter(kill.stage for kill in kills)),
        'rounds': number,
        'checkpoints_lost': sum(kill.lost for kill in kills),
        'wrong_resumes': sum(kill.wrong for kill in kills),
        'differing_tensors': differences,
        'export_kills': [asdict(kill) for kill in exports],
        'wrong_exports': sum(kill.wrong for kill in exports),
        'seconds': round(time.time() - begin),
        'seed': args.seed,
    }
    print_kills(kills)
    print_exports(exports)
    target = args.json or args.work_dir / 'stress.json'
    write_text(target, json.dumps(result, indent=2) + '\n')
    print(f'{number} runs, {len(differences)} tensors differ from the uninterrupted run; '
          f'{len(exports)} exports, {result["wrong_exports"]} wrong; {target}')  # fmt: skip
    faults = ('checkpoints_lost', 'wrong_resumes', 'differing_tensors', 'wrong_exports')
    if any(result[name] for name in faults) or len(exports) < args.export_kills:
        sys.exit(1)


def remove_rounds(work_dir: Path) -> None:
    """Removes what an earlier call has made, and nothing else."""
    for old in work_dir.glob('round_*'):
        config = old / 'config.py'
        if not config.is_file() or not config.read_text(encoding='utf-8').startswith('_base_ = '):
            sys.exit(f'error: {old} was not made by this tool: name another --work-dir')
        shutil.rmtree(old)


if __name__ == '__main__':
    run(main)
