"""Kills a small run again and again, resumes it each time, and compares with one left alone.

A run of the demo (two batches per step, averaged weights, a checkpoint every third iteration) gets
SIGKILL while it is scored, trained and saved, and is resumed with the same command and --resume
until it is done; then the next run is begun, until all kills are spent. At the end of each run
every weight, average and optimizer state must equal those of the uninterrupted run, one best
checkpoint must be there and whole, and no resume may go on from less than the last checkpoint. Most
of the time is starting Python.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from cdra_mm.command_line import run

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = REPOSITORY / 'configs/cdra/demo.py'
WEIGHTS = REPOSITORY / 'assets/vit_tiny32_in200.pth'
ITERATIONS = 24
SAMPLES = 32
CHANGES = f"""_base_ = {str(CONFIG)!r}
train_cfg = dict(max_iters={ITERATIONS}, val_interval={ITERATIONS // 3})
train_dataloader = dict(batch_size=4)
val_dataloader = dict(dataset=dict(indices=16))
# mmengine does not bring random numbers back: nothing in the model may draw any.
model = dict(decode_head=dict(dropout_ratio=0))
optim_wrapper = dict(accumulative_counts=2)
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
default_hooks = dict(
    checkpoint=dict(interval=3, max_keep_ckpts=2, save_best='mIoU'),
    logger=dict(interval=1),
    cdra=dict(num_samples={SAMPLES}, batch_size=4),
)
"""
# What each run meets: a random moment of the whole run, or one that is watched for.
ROUND = ('scoring', 'saving', 'random', 'saving', 'random', 'training')
# Lines of the log in the scoring pass, which tells every quarter.
SCORING = ('scoring the backbone', *(f' {SAMPLES * q // 4} of {SAMPLES}' for q in (1, 2, 3)))
LIMIT = 3600  # seconds that one process may take, on a busy machine too


@dataclass(frozen=True)
class Kill:
    """One kill and what came of it.

    Attributes:
        wanted: The moment that was watched for.
        stage: Where the process was: starting, scoring, training, saving or ending.
        checkpoint: Iteration of the newest whole checkpoint after the kill, 0 for none.
        lost: Whether a checkpoint that was there is gone.
        resumed: Iteration from which the next process went on; -1 where it was killed before.
    """

    wanted: str
    stage: str
    checkpoint: int
    lost: bool
    resumed: int = -1

    @property
    def wrong(self) -> bool:
        """Whether the next process went on from something else."""
        return self.resumed not in (-1, self.checkpoint)


class StressedRun:
    """A work directory and the processes that train in it."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder, self.environment = folder, environment
        self.work_dir = folder / 'run'
        self.log = folder / 'log.txt'
        self.config = folder / 'config.py'
        folder.mkdir(parents=True)
        self.config.write_text(CHANGES, encoding='utf-8')

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(REPOSITORY / 'tools/train.py'), str(self.config),
                   '--resume', '--work-dir', str(self.work_dir)]  # fmt: skip
        with self.log.open('wb') as stream:
            return subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, env=self.environment
            )

    def read_log(self) -> str:
        return self.log.read_text(encoding='utf-8', errors='replace')

    def being_written(self) -> set[str]:
        return {path.name for path in self.work_dir.glob('.*.pth.*.tmp')}

    def newest(self) -> int:
        """Iteration of the checkpoint that a resume would take, 0 for none."""
        from cdra_mm.mm.checkpoints.own_files import OwnFiles
        from cdra_mm.mm.checkpoints.resuming import latest_checkpoint

        found = latest_checkpoint(OwnFiles((self.work_dir,)), lambda _: None)
        return int(found.stem.rpartition('_')[2]) if found else 0

    def best_faults(self) -> list[str]:
        """What is wrong with the best checkpoint: one has to be there, and whole."""
        from cdra_mm.errors import CheckpointError
        from cdra_mm.mm.checkpoints.resuming import check_whole

        found = sorted(self.work_dir.glob('best_*.pth'))
        if len(found) != 1:
            return [f'{len(found)} best checkpoints']
        try:
            check_whole(found[0], 'best')
        except CheckpointError as error:
            return [str(error)]
        return []

    def stage(self, leftovers: set[str]) -> str:
        if self.being_written() - leftovers:
            return 'saving'
        log = self.read_log()
        if f'Iter(train) [{ITERATIONS}/{ITERATIONS}]' in log:
            return 'ending'
        if re.search(r'scored \d+ samples in|Iter\(train\)|Load checkpoint from', log):
            return 'training'
        return 'scoring' if 'scoring the backbone' in log else 'starting'

    def resumed_from(self) -> int:
        """Iteration from which the last process went on, -1 if its log does not say so yet."""
        log = self.read_log()
        match = re.search(r'Load checkpoint from \S*iter_(\d+)\.pth', log)
        return int(match[1]) if match else -('starting from the beginning' not in log)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--kills', type=int, default=30, help='default: 30')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--root', type=Path, default='data/demo', help='data; made when missing')
    parser.add_argument('--work-dir', type=Path, default='work_dirs/stress', help='made anew')
    parser.add_argument('--json', type=Path, help='default: stress.json among them')
    args = parser.parse_args()
    return args if args.kills > 0 else parser.error('--kills: expected 1 or more')


def main() -> None:
    args = parse_args()

    from cdra_mm.data import prepare
    from cdra_mm.storage import write_text

    prepare('demo', args.root)
    for old in args.work_dir.glob('round_*'):
        config = old / 'config.py'
        if not config.is_file() or not config.read_text(encoding='utf-8').startswith('_base_ = '):
            sys.exit(f'error: {old} was not made by this tool: name another --work-dir')
        shutil.rmtree(old)
    environment = {
        **os.environ,
        'CDRA_DEMO_ROOT': str(args.root.resolve()),
        'CDRA_VIT_TINY32': os.environ.get('CDRA_VIT_TINY32', str(WEIGHTS)),
        'OMP_NUM_THREADS': '1',
        'PYTHONUNBUFFERED': '1',
    }
    begin = time.time()
    reference = StressedRun(args.work_dir / 'round_0', environment)
    finish(reference, reference.start())
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
        differences += [f'round {number}: {name}' for name in differing(reference, stressed)]
        differences += [f'round {number}: {fault}' for fault in stressed.best_faults()]
        print(f'round {number}: {len(kills)} of {args.kills} kills, '
              f'{len(differences)} tensors differ')  # fmt: skip
        if not differences:
            shutil.rmtree(stressed.folder)
    result = {
        'kills': [asdict(kill) for kill in kills],
        'stages': dict(Counter(kill.stage for kill in kills)),
        'rounds': number,
        'checkpoints_lost': sum(kill.lost for kill in kills),
        'wrong_resumes': sum(kill.wrong for kill in kills),
        'differing_tensors': differences,
        'seconds': round(time.time() - begin),
        'seed': args.seed,
    }
    print_table(kills)
    target = args.json or args.work_dir / 'stress.json'
    write_text(target, json.dumps(result, indent=2) + '\n')
    print(f'{number} runs, {len(differences)} tensors differ from the uninterrupted run; {target}')
    if differences or result['checkpoints_lost'] or result['wrong_resumes']:
        sys.exit(1)


def one_round(
    stressed: StressedRun, most: int, moments: random.Random, length: float
) -> list[Kill]:
    """Kills and resumes one run until it is done."""
    kills: list[Kill] = []
    for wanted in ROUND[:most]:
        before, leftovers = stressed.newest(), stressed.being_written()
        process = stressed.start()
        killed = kill_at(process, moment(stressed, wanted, moments, length))
        kills = [*kills[:-1], resolved(kills[-1], stressed)] if kills else kills
        if not killed:
            finish(stressed, process)
            return kills
        stage, newest = stressed.stage(leftovers), stressed.newest()
        kills.append(Kill(wanted, stage, newest, lost=newest < before))
        print(f'  killed while {stage}, checkpoint of iteration {newest}')
    finish(stressed, stressed.start())
    return [*kills[:-1], resolved(kills[-1], stressed)]


def moment(
    stressed: StressedRun, wanted: str, moments: random.Random, length: float
) -> Callable[[], bool]:
    """What becomes true at the moment to kill at."""
    if wanted == 'saving':
        left = moments.randrange(3)  # checkpoints to let pass
        seen = stressed.being_written()  # what an earlier kill has left
        left += len(seen)

        def saving() -> bool:
            writing = stressed.being_written() - seen
            seen.update(writing)
            return bool(writing) and len(seen) > left

        return saving
    if wanted == 'random':
        end = time.time() + moments.random() * length
        return lambda: time.time() > end
    if wanted == 'scoring':
        pattern = moments.choice(SCORING)
    else:
        next_one = min(stressed.newest() + 1, ITERATIONS)
        pattern = rf'Iter\(train\) \[ *{moments.randint(next_one, ITERATIONS)}/'
    return lambda: re.search(pattern, stressed.read_log()) is not None


def kill_at(process: subprocess.Popen[bytes], is_time: Callable[[], bool]) -> bool:
    """Kills a process at the moment; False if it ended before."""
    begin = time.time()
    while process.poll() is None:
        if is_time():
            process.kill()
            return process.wait() < 0
        if time.time() - begin > LIMIT:
            process.kill()
            raise TimeoutError(f'a run took longer than {LIMIT} s')
        time.sleep(0.001)  # a small checkpoint is written in a few milliseconds
    return False


def finish(stressed: StressedRun, process: subprocess.Popen[bytes]) -> None:
    process.wait(LIMIT)
    if process.returncode:
        print(stressed.read_log()[-3000:])
        sys.exit(f'error: a run ended with exit code {process.returncode}: {stressed.log}')


def resolved(kill: Kill, stressed: StressedRun) -> Kill:
    """A kill with the iteration that the process after it went on from."""
    return Kill(**{**asdict(kill), 'resumed': stressed.resumed_from()})


def differing(reference: StressedRun, stressed: StressedRun) -> list[str]:
    """Names of the tensors in which the last checkpoints of two runs differ."""
    import torch

    name = f'run/iter_{ITERATIONS}.pth'
    a, b = (
        dict(tensors(torch.load(r.folder / name, map_location='cpu', weights_only=False)))
        for r in (reference, stressed)
    )
    both = a.keys() & b.keys()
    return sorted((a.keys() ^ b.keys()) | {key for key in both if not torch.equal(a[key], b[key])})


def tensors(value, name: str = ''):
    """Every tensor of a checkpoint, by its path."""
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            if name or key in ('state_dict', 'ema_state_dict', 'optimizer'):
                yield from tensors(entry, f'{name}.{key}' if name else str(key))


def print_table(kills: list[Kill]) -> None:
    print(f'\n{"killed while":14}{"kills":>7}{"checkpoints lost":>19}{"wrong resumes":>16}')
    for stage in ('starting', 'scoring', 'training', 'saving', 'ending'):
        here = [kill for kill in kills if kill.stage == stage]
        lost = sum(kill.lost for kill in here)
        wrong = sum(kill.wrong for kill in here)
        print(f'{stage:14}{len(here):>7}{lost:>19}{wrong:>16}')


if __name__ == '__main__':
    run(main)
