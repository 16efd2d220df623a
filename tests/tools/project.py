"""A user's folder at tiny size: images, a pretrained file, configs of a classifier."""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]

PLAIN = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(mean=[127.0] * 3, std=[50.0] * 3),
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
        img_size=32,
        patch_size=8,
        init_cfg=dict(type='Pretrained', checkpoint='{folder}/base.pth', prefix='backbone.'),
    ),
    head=dict(type='LinearClsHead', in_channels=32, num_classes=2),
)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset', data_root='{folder}/data', data_prefix='train', pipeline=pipeline
    ),
)
val_dataloader = test_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CustomDataset', data_root='{folder}/data', data_prefix='val', pipeline=pipeline
    ),
)
val_evaluator = test_evaluator = dict(type='Accuracy', topk=1)
train_cfg = dict(by_epoch=True, max_epochs=2)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2))
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
randomness = dict(seed=0)
"""
BLOCK = "_base_ = 'plain.py'\ncdra = dict(budget_percent=5.0, num_samples=8)\n"
HOOK = """
_base_ = 'plain.py'
default_hooks = dict(
    cdra=dict(type='cdra_mm.CDRAHook', budget_percent=5.0, num_samples=8)
)
"""
OPTIONS = ('default_hooks.cdra.budget_percent=5.0', 'default_hooks.cdra.num_samples=8')


def make_project(folder: Path) -> Path:
    """Writes data, base weights and the configs plain.py, block.py and hook.py."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 3)):
        for brightness, name in enumerate(('dark', 'light')):
            (folder / 'data' / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(100 * brightness, 150 + 100 * brightness, (32, 32, 3))
                path = folder / 'data' / split / name / f'{i}.png'
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    for name, text in (('plain', PLAIN), ('block', BLOCK), ('hook', HOOK)):
        (folder / f'{name}.py').write_text(text.replace('{folder}', str(folder)))
    write_base(folder)
    return folder


def write_base(folder: Path) -> None:
    """A pretrained classifier's file, as OpenMMLab publishes them."""
    from mmpretrain.models import VisionTransformer

    torch.manual_seed(7)
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)
    backbone = VisionTransformer(arch, img_size=32, patch_size=8)
    backbone.init_weights()
    state = {
        f'backbone.{k}': v + 0.02 * torch.randn_like(v) for k, v in backbone.state_dict().items()
    }
    torch.save({'state_dict': state}, folder / 'base.pth')


class Ended(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on stderr, '' where there is none."""
        return (self.err.strip().splitlines() or [''])[-1]


def call(folder: Path, tool: str, *arguments: object) -> Ended:
    """Runs a script of tools/ as a user does, but in this process, which has imported it all.

    To start a process for it (`start`) takes ten times as long as what it does at this size.
    """
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(sys, 'argv', [f'{tool}.py', *map(str, arguments)])
        patch.syspath_prepend(REPOSITORY / 'tools')  # as Python does for a script
        try:
            runpy.run_path(str(REPOSITORY / 'tools' / f'{tool}.py'), run_name='__main__')
        except SystemExit as end:
            code = end.code or 0
        finally:  # mmengine would hand them to the next run, if that starts in the same second
            for held in (DefaultScope, MMLogger, MessageHub, Visualizer):
                held._instance_dict.clear()
    return Ended(code, out.getvalue(), err.getvalue())


def succeed(folder: Path, tool: str, *arguments: object) -> str:
    """`call` of a command that must succeed; returns what it printed."""
    ended = call(folder, tool, *arguments)
    assert ended.code == 0, ended.err[-3000:]
    return ended.out


def command(tool: str, *arguments: object) -> list[str]:
    return [sys.executable, str(REPOSITORY / 'tools' / f'{tool}.py'), *map(str, arguments)]


def environment() -> dict[str, str]:
    return {**os.environ, 'PYTHONPATH': str(REPOSITORY), 'OMP_NUM_THREADS': '1'}


def start(folder: Path, words: list[str]) -> subprocess.Popen:
    """A command line as its own process, in the project's folder."""
    return subprocess.Popen(
        words, cwd=folder, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> str:
    """Waits for a command that must succeed; returns what it printed."""
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err[-3000:]
    return out


def refusal(ended: Ended) -> str:
    """The line of a command that must end with it and exit code 2."""
    assert ended.code == 2, (ended.code, ended.out[-2000:], ended.err[-2000:])
    assert 'Traceback' not in ended.err
    return ended.last
