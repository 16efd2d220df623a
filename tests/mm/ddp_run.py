"""Groups of processes on a CPU: ``python -m tests.mm.ddp_run FOLDER 2:name,name 3:name``.

OpenMMLab is imported once; each group is forked from there, joined by gloo, and plays its
scenarios one after the other. What a scenario returns is saved for each process, an error as its
text; `outcomes` reads it.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config

from tests.mm import scenarios

SECONDS = 240  # of a group; ten on an idle machine


def play(folder: Path, *groups: str) -> None:
    """Runs groups in a process of their own, from within a test."""
    root = Path(__file__).resolve().parents[2]
    own = {'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo', 'CUDA_VISIBLE_DEVICES': '-1'}
    result = subprocess.run(
        [sys.executable, '-m', 'tests.mm.ddp_run', str(folder), *groups],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=SECONDS * len(groups) + 60,
        env={**os.environ, **own, 'PYTHONPATH': str(root)},
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def outcomes(folder: Path, name: str, count: int) -> list[Any]:
    """What a scenario returned on each process of a group; errors as text."""
    return [torch.load(place(folder, name, count, r), weights_only=False) for r in range(count)]


def place(folder: Path, name: str, count: int, rank: int) -> Path:
    return folder / f'{name}_{count}_{rank}.pt'


def be_one(rank: int, count: int, folder: Path, names: list[str]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    torch.set_num_threads(1)
    store = f'file://{folder}/store_{count}_{names[0]}'
    dist.init_process_group(
        'gloo', store, rank=rank, world_size=count, timeout=timedelta(seconds=SECONDS)
    )
    for name in names:
        scenario: Callable[[Path], Any] = getattr(scenarios, name)
        begin = time.time()
        try:
            outcome = scenario(folder)
        except Exception as error:  # read by the tests
            outcome = f'{type(error).__name__}: {error}'
        torch.save(outcome, place(folder, name, count, rank))
        if rank == 0:
            print(f'{name} of {count}: {time.time() - begin:.1f} s', flush=True)


def be_group(count: int, folder: Path, names: list[str]) -> None:
    children = {}
    for rank in range(count):
        child = os.fork()
        if not child:
            be_one(rank, count, folder, names)
            sys.stdout.flush()
            os._exit(0)  # gloo's threads and mmengine's loggers end with the process
        children[child] = rank
    end = time.time() + SECONDS
    while children:
        for child in list(children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended and status:
                sys.exit(f'process {children[child]} of {count} failed: {names}')
            if ended:
                del children[child]
        if time.time() > end:
            for child in children:
                os.kill(child, 9)
            sys.exit(f'processes {list(children.values())} of {count} did not end: {names}')
        time.sleep(0.02)


def main() -> None:
    # To make dumped configs pretty takes most of a short run's time.
    Config.pretty_text = property(
        lambda cfg: ''.join(f'{key} = {value!r}\n' for key, value in cfg.to_dict().items())
    )
    folder = Path(sys.argv[1])
    gc.collect()
    gc.freeze()  # what is imported is no garbage, and no copy of its pages is made by looking
    for group in sys.argv[2:]:
        count, names = group.split(':')
        be_group(int(count), folder, names.split(','))


if __name__ == '__main__':
    main()
