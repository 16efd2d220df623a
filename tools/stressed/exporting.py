"""What is made of a run's checkpoint, killed while it is made, in the run's own work directory.

After a kill the destination has to hold what it held before, or the whole new file; then the same
export again, or a training in that work directory, has to go on and to clear away what was left.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import cycle, product
from pathlib import Path

from .comparing import content_of
from .killing import finish, half_written, kill_at, start
from .training import ITERATIONS, StressedRun

PLACES = {
    'merged': 'demo_merged.pth',
    'adapter': 'demo.safetensors',
    'peft': 'demo_peft',
    'onnx': 'demo.onnx',
}
# One after the other: the moment, the format, and whether an older export lies there.
TRIES = tuple(product(('writing', 'random'), (False, True), PLACES))
MOST_TRIES = 4  # for each kill: a small file is written before one can look
EARLIER = ITERATIONS - 3  # iteration of the checkpoint that the older exports are made of


@dataclass(frozen=True)
class ExportKill:
    """One kill of an export and what came of it.

    Attributes:
        to: The format.
        stage: Where the process was: working, writing or ending.
        before: What the destination held: nothing or old.
        after: What it held after the kill: nothing, old, new or damaged.
        then: What was done next in that work directory: export or training.
        left: What that did not clear away.
    """

    to: str
    stage: str
    before: str
    after: str
    then: str
    left: tuple[str, ...]

    @property
    def wrong(self) -> bool:
        return self.after not in (self.before, 'new') or bool(self.left)


class StressedExports:
    """The exports of a run that is done."""

    def __init__(self, run: StressedRun) -> None:
        self.run = run
        self.log = run.folder / 'export.txt'
        self.whole = run.folder / 'whole'
        self.length = 0.0

    def start(self, to: str, out: Path, iteration: int = ITERATIONS) -> subprocess.Popen[bytes]:
        checkpoint = self.run.work_dir / f'iter_{iteration}.pth'
        words = [str(self.run.config), str(checkpoint), str(out), '--format', to, '--force']
        return start('merge', words, self.log, self.run.environment)

    def make_whole(self) -> None:
        """What every export has to give, from processes that are left alone."""
        begin = time.time()
        for age, iteration in (('new', ITERATIONS), ('old', EARLIER)):
            (self.whole / age).mkdir(parents=True)
            for to, name in PLACES.items():
                finish(self.start(to, self.whole / age / name, iteration), self.log)
        self.length = (time.time() - begin) / (2 * len(PLACES))

    def found(self, to: str) -> str:
        """What the destination holds."""
        try:
            content = content_of(self.run.work_dir / PLACES[to])
        except Exception as error:  # each format has a reader of its own
            print(f'  {PLACES[to]}: {type(error).__name__}: {error}')
            return 'damaged'
        if content is None:
            return 'nothing'
        ages = (a for a in ('new', 'old') if content == content_of(self.whole / a / PLACES[to]))
        return next(ages, 'damaged')

    def put(self, to: str, old: bool) -> None:
        """Makes the destination free, or puts the older export there."""
        place = self.run.work_dir / PLACES[to]
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
        if old:
            source = self.whole / 'old' / PLACES[to]
            (shutil.copytree if source.is_dir() else shutil.copy)(source, place)

    def moment(self, wanted: str, to: str, moments: random.Random) -> Callable[[], bool]:
        """What becomes true at the moment to kill at."""
        if wanted == 'random':
            end = time.time() + moments.random() * self.length
            return lambda: time.time() > end
        seen = half_written(self.run.work_dir, PLACES[to])
        return lambda: bool(half_written(self.run.work_dir, PLACES[to]) - seen)

    def kill(self, wanted: str, to: str, old: bool, then: str, moments: random.Random):
        """One kill; None if the export ended before."""
        self.put(to, old)
        before = self.found(to)
        process = self.start(to, self.run.work_dir / PLACES[to])
        if not kill_at(process, self.moment(wanted, to, moments)):
            finish(process, self.log)
            return None
        writing = half_written(self.run.work_dir, PLACES[to])
        after = self.found(to)
        stage = 'writing' if writing else 'ending' if after == 'new' else 'working'
        if then == 'export':
            finish(self.start(to, self.run.work_dir / PLACES[to]), self.log)
            after = after if self.found(to) == 'new' else 'damaged'
        else:
            finish(self.run.start(), self.run.log)
            after = after if self.found(to) == after else 'damaged'
        left = half_written(self.run.work_dir)
        print(f'  {to}: killed while {stage}, {before} before, {after} after, then {then}')
        return ExportKill(to, stage, before, after, then, tuple(sorted(left)))


def kill_exports(run: StressedRun, most: int, moments: random.Random) -> list[ExportKill]:
    """Kills exports of a run that is done until all kills are spent."""
    exports = StressedExports(run)
    exports.make_whole()
    print(f'uninterrupted export: {exports.length:.0f} s')
    kills: list[ExportKill] = []
    tries = 0
    for wanted, old, to in cycle(TRIES):
        if len(kills) == most or tries == MOST_TRIES * most:
            return kills
        tries += 1
        then = ('export', 'training')[len(kills) % 2]
        killed = exports.kill(wanted, to, old, then, moments)
        kills += [killed] if killed else []
    return kills


def print_exports(kills: list[ExportKill]) -> None:
    print(f'\n{"export":10}{"kills":>7}{"working":>9}{"writing":>9}{"ending":>8}{"wrong":>7}')
    for to in PLACES:
        here = [kill for kill in kills if kill.to == to]
        stages = [sum(k.stage == stage for k in here) for stage in ('working', 'writing', 'ending')]
        counts = (len(here), *stages, sum(kill.wrong for kill in here))
        print(
            f'{to:10}' + ''.join(f'{c:>{w}}' for c, w in zip(counts, (7, 9, 9, 8, 7), strict=True))
        )
