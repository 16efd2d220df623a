"""A run that is killed while it is scored, trained and saved, and resumed each time."""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from .killing import REPOSITORY, finish, half_written, kill_at, read_log, start

ITERATIONS = 24
SAMPLES = 32
CHANGES = f"""_base_ = {str(REPOSITORY / 'configs/cdra/demo.py')!r}
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

    @property
    def final(self) -> Path:
        return self.work_dir / f'iter_{ITERATIONS}.pth'

    def start(self) -> subprocess.Popen[bytes]:
        words = [str(self.config), '--resume', '--work-dir', str(self.work_dir)]
        return start('train', words, self.log, self.environment)

    def being_written(self) -> set[str]:
        return half_written(self.work_dir, '*.pth')

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
        log = read_log(self.log)
        if f'Iter(train) [{ITERATIONS}/{ITERATIONS}]' in log:
            return 'ending'
        if re.search(r'scored \d+ samples in|Iter\(train\)|Load checkpoint from', log):
            return 'training'
        return 'scoring' if 'scoring the backbone' in log else 'starting'

    def resumed_from(self) -> int:
        """Iteration from which the last process went on, -1 if its log does not say so yet."""
        log = read_log(self.log)
        match = re.search(r'Load checkpoint from \S*iter_(\d+)\.pth', log)
        return int(match[1]) if match else -('starting from the beginning' not in log)


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
            finish(process, stressed.log)
            return kills
        stage, newest = stressed.stage(leftovers), stressed.newest()
        kills.append(Kill(wanted, stage, newest, lost=newest < before))
        print(f'  killed while {stage}, checkpoint of iteration {newest}')
    finish(stressed.start(), stressed.log)
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
    return lambda: re.search(pattern, read_log(stressed.log)) is not None


def resolved(kill: Kill, stressed: StressedRun) -> Kill:
    """A kill with the iteration that the process after it went on from."""
    return Kill(**{**asdict(kill), 'resumed': stressed.resumed_from()})


def print_kills(kills: list[Kill]) -> None:
    print(f'\n{"killed while":14}{"kills":>7}{"checkpoints lost":>19}{"wrong resumes":>16}')
    for stage in ('starting', 'scoring', 'training', 'saving', 'ending'):
        here = [kill for kill in kills if kill.stage == stage]
        lost = sum(kill.lost for kill in here)
        wrong = sum(kill.wrong for kill in here)
        print(f'{stage:14}{len(here):>7}{lost:>19}{wrong:>16}')
