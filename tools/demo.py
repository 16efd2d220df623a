"""Fine-tunes a small ViT to segment digits, with and without CDRA, and compares; about 5 minutes.

Every step is a command that you can run yourself; it is printed at the head of the step's log.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

from cdra_mm.columns import aligned
from cdra_mm.command_line import run
from cdra_mm.last_checkpoint import pointed_at

REPOSITORY = Path(__file__).resolve().parents[1]
CONFIG = REPOSITORY / 'configs/cdra/demo.py'
WEIGHTS = REPOSITORY / 'assets/vit_tiny32_in200.pth'
METHODS = {'cdra': [], 'linear': ['default_hooks.cdra.method.type=linear']}
TITLES = {'cdra': 'CDRA', 'linear': 'head only', 'merged': 'CDRA, merged'}
PROGRESS = re.compile(r'Iter\(train\) *\[ *(\d+/\d+)\]')
LOG_LINES = 20  # of a failed step
PICTURES = 6


@dataclass(frozen=True)
class Demo:
    """Where a demo runs and with what.

    Attributes:
        work_dir: Where everything but the data goes.
        environment: Environment of the child processes.
        overrides: Further ``--cfg-options``.
        seed: Of the order of the data, the head and the samples scored.
    """

    work_dir: Path
    environment: dict[str, str]
    overrides: list[str]
    seed: int

    def train(self, method: str) -> dict:
        """Trains, and returns the run's summary."""
        folder = self.work_dir / method
        options = [
            f'randomness.seed={self.seed}',
            f'default_hooks.cdra.seed={self.seed}',
            *METHODS[method],
            *self.overrides,
        ]
        self.step(f'training, {TITLES[method]}', 'train.py', CONFIG, '--work-dir', folder,
                  '--cfg-options', *options)  # fmt: skip
        return read_json(folder / 'summary.json')

    def test(self, name: str, checkpoint: Path, *options: str) -> dict:
        """Tests, and returns the metrics; the predicted label maps go beside them."""
        folder = self.work_dir / f'{name}_test'
        self.step(f'testing, {TITLES[name]}', 'test.py', CONFIG, checkpoint, '--work-dir', folder,
                  '--out', folder / 'predictions',
                  *(['--cfg-options', *options] if options else []))  # fmt: skip
        return read_json(folder / 'summary.json')['test_metrics']

    def step(self, title: str, tool: str, *arguments: object) -> None:
        """Runs a tool as its own process; its output goes to a log file."""
        command = [sys.executable, str(REPOSITORY / 'tools' / tool), *map(str, arguments)]
        log = self.work_dir / f'{title.replace(", ", "_").replace(" ", "_").lower()}.log'
        log.parent.mkdir(parents=True, exist_ok=True)
        begin = time.time()
        # One line can show one progress: that of the longer step.
        shown = TITLES['linear'] not in title
        if shown:
            say(f'{title} ...')
        with log.open('w', encoding='utf-8') as stream:
            stream.write(shlex.join(command) + '\n')
            stream.flush()
            child = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, env=self.environment
            )
            try:
                while child.poll() is None:
                    time.sleep(0.2)
                    if shown:
                        show_progress(title, log)
            finally:
                if child.poll() is None:
                    child.terminate()
                child.wait()
        if child.returncode:
            print(f'\n{title} failed (exit code {child.returncode}); the end of {log}:')
            print('\n'.join(log.read_text(encoding='utf-8').splitlines()[-LOG_LINES:]))
            sys.exit(child.returncode if child.returncode > 0 else 1)
        say(f'{title}: {time.time() - begin:.0f} s', end=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--root', type=Path, default='data/demo', help='data; made when missing')
    parser.add_argument('--work-dir', type=Path, default='work_dirs/demo', help='for all results')
    parser.add_argument('--seeds', type=int, default=1, help='runs, with mean and spread')
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', default=[], metavar='KEY=VALUE',
        help='change settings of the trainings',
    )  # fmt: skip
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error('--seeds: expected 1 or more')
    return args


def main() -> None:
    args = parse_args()

    from cdra_mm.data import prepare
    from cdra_mm.errors import CheckpointError

    weights = Path(os.environ.get('CDRA_VIT_TINY32', WEIGHTS))
    if not weights.is_file():
        raise CheckpointError(f'weight file {weights} does not exist: put it there, or name it in '
                              'CDRA_VIT_TINY32')  # fmt: skip
    report = prepare('demo', args.root)
    print('data: ' + ', '.join(f'{s.found} {s.split.name} images' for s in report.states)
          + f' in {args.root}')  # fmt: skip
    environment = {
        **os.environ,
        'CDRA_DEMO_ROOT': str(args.root.resolve()),
        'CDRA_VIT_TINY32': str(weights.resolve()),
        'PYTHONUNBUFFERED': '1',
        # The two methods run side by side; more threads each would only wait for one another.
        'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', '1'),
    }
    results: list[dict] = []
    for seed in range(args.seeds):
        folder = args.work_dir / f'seed{seed}' if args.seeds > 1 else args.work_dir
        demo = Demo(folder, environment, args.cfg_options, seed)
        if args.seeds > 1:
            print(f'seed {seed}:')
        results.append(one_run(demo))
        if seed == 0:
            predictions = {
                name: folder / f'{name}_test' / 'predictions' for name in ('cdra', 'linear')
            }
            paint(args.root, predictions, args.work_dir / 'predictions.png')
    summary = {name: over_seeds([result[name] for result in results]) for name in results[0]}
    write_json(args.work_dir / 'summary.json', summary)
    print_table(summary)
    if args.seeds > 1:
        print(f'mean of {args.seeds} seeds ± half of their range')
    print(f'\npictures: {args.work_dir / "predictions.png"}   figures: '
          f'{args.work_dir / "summary.json"}')  # fmt: skip


def one_run(demo: Demo) -> dict[str, dict]:
    """Trains and tests both methods, merges CDRA and tests that in a config without our hook."""
    with ThreadPoolExecutor(len(METHODS)) as side_by_side:
        results = dict(
            zip(METHODS, side_by_side.map(partial(one_method, demo), METHODS), strict=True)
        )
    merged = demo.work_dir / 'cdra_merged.pth'
    demo.step('merging', 'merge.py', CONFIG, last_checkpoint(demo.work_dir / 'cdra'), merged,
              '--force')  # fmt: skip
    metrics = demo.test('merged', merged, 'default_hooks.cdra=None')
    results['merged'] = {**metrics, 'bytes': merged.stat().st_size}
    return results


def one_method(demo: Demo, method: str) -> dict:
    """Trains and tests one method."""
    summary = demo.train(method)
    return {
        **demo.test(method, last_checkpoint(demo.work_dir / method)),
        'percent_of_backbone': summary['percent_of_backbone'],
        'bytes': summary['checkpoint_bytes'],
        'seconds': summary['scoring_seconds'] + summary['training_seconds'],
    }


def last_checkpoint(folder: Path) -> Path:
    found = pointed_at(folder)
    if found is None:
        sys.exit(f'error: {folder} has no checkpoint')
    return found


def over_seeds(runs: list[dict]) -> dict:
    """The mean of every figure; with several runs, the figures of each beside it."""
    summary: dict = {key: mean(run[key] for run in runs) for key in runs[0]}
    if len(runs) > 1:
        summary['runs'] = runs
    return summary


def print_table(summary: dict[str, dict]) -> None:
    head = ('method', 'trained backbone', 'checkpoint', 'seconds', 'mIoU', 'mDice', 'merged mIoU')
    rows = []
    for name in METHODS:
        entry = summary[name]
        rows.append((
            TITLES[name],
            f'{entry["percent_of_backbone"]:.2f} %',
            f'{entry["bytes"] / 1e6:.2f} MB',
            f'{entry["seconds"]:.0f}',
            figure(entry, 'mIoU'),
            figure(entry, 'mDice'),
            figure(summary['merged'], 'mIoU') if name == 'cdra' else '-',
        ))  # fmt: skip
    print(f'\n{aligned(head, rows)}')


def figure(entry: dict, key: str) -> str:
    """A metric, with half of its range over the runs."""
    values = [run[key] for run in entry.get('runs', [])]
    spread = f' ± {(max(values) - min(values)) / 2:.1f}' if values else ''
    return f'{entry[key]:.1f}{spread}'


def paint(root: Path, predictions: dict[str, Path], out: Path) -> None:
    """A grid of validation images: what was seen, what is there, what each method says."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.patches import Patch
    from PIL import Image

    from cdra_mm.data.demo_images import CLASSES, PALETTE

    names = sorted(path.stem for path in (root / 'annotations/validation').glob('*.png'))
    names = names[:: max(1, len(names) // PICTURES)][:PICTURES]
    palette = np.array(PALETTE, np.uint8)
    folders = {'truth': root / 'annotations/validation'}
    folders |= {TITLES[name]: folder for name, folder in predictions.items()}
    size = 1.5  # inches of a picture
    figure, axes = plt.subplots(
        1 + len(folders), len(names), squeeze=False, layout='constrained',
        figsize=(size * len(names) + 0.3, size * (1 + len(folders)) + 0.5),
    )  # fmt: skip
    for column, name in enumerate(names):
        axes[0, column].imshow(Image.open(root / 'images/validation' / f'{name}.jpg'))
        for row, folder in enumerate(folders.values(), 1):
            labels = np.asarray(Image.open(folder / f'{name}.png'))
            axes[row, column].imshow(palette[labels], interpolation='nearest')
    for row, title in enumerate(['image', *folders]):
        axes[row, 0].set_ylabel(title)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    colours = [Patch(color=palette[i] / 255, label=f'{label}') for i, label in enumerate(CLASSES)]
    figure.legend(handles=colours, loc='outside lower center', ncols=len(CLASSES), frameon=False,
                  handlelength=1, handletextpad=0.4, columnspacing=1.2)  # fmt: skip
    figure.savefig(out, dpi=160)
    plt.close(figure)


def show_progress(title: str, log: Path) -> None:
    if sys.stdout.isatty():
        with log.open('rb') as stream:
            stream.seek(max(0, log.stat().st_size - 4000))
            done = PROGRESS.findall(stream.read().decode(errors='replace'))
        if done:
            say(f'{title} ... iteration {done[-1]}')


def say(text: str, end: bool = False) -> None:
    """One line per step: redrawn on a terminal, written once elsewhere."""
    if sys.stdout.isatty():
        print(f'\r\033[K{text}', end='\n' if end else '', flush=True)
    elif end:
        print(text, flush=True)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding='utf-8'))


def write_json(path: Path, content: dict) -> None:
    from cdra_mm.storage import write_text

    write_text(path, json.dumps(content, indent=2) + '\n')


if __name__ == '__main__':
    run(main)
