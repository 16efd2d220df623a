"""Many tasks on one base: their files, their heads, and batches of several of them."""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cdra_mm.core import Block, CheckpointError, ConfigError, MultiTask, Plan, PlanError, save_task
from tests.core.artifacts.many import backbone, many

from .case import heading


def task_file(folder, **options):
    path = folder / 'a.safetensors'
    many().save('t0', path, **options)
    return path


class Transposed(nn.Linear):
    """Uses its weight in another way than ``F.linear``."""

    def forward(self, x):
        return x @ self.weight.t()


with heading('Many tasks on one base') as (refused, taken):

    @refused('another file as that of a task', CheckpointError, 'no task of cdra_mm: expected what')
    def _(folder):
        save_file({'a': torch.ones(1)}, folder / 'a.safetensors')
        MultiTask(backbone()).add('a', folder / 'a.safetensors')

    @refused(
        'a task file with a changed value', CheckpointError, 'its values or its texts are not those'
    )
    def _(folder):
        from safetensors import safe_open

        path = task_file(folder)
        with safe_open(str(path), 'pt') as file:
            texts = file.metadata()
        tensors = load_file(path)
        tensors['cdra_head.bias'] += 1
        save_file(tensors, path, metadata=texts)
        MultiTask(backbone()).add('a', path)

    @refused(
        'a task file whose head is no linear layer, without a head',
        CheckpointError,
        'only a Linear is built from a file alone',
    )
    def _(folder):
        many().save('t1', folder / 'a.safetensors')
        MultiTask(backbone()).add('a', folder / 'a.safetensors')

    @refused(
        'a head of another number of classes',
        CheckpointError,
        'make the head as it was in training',
    )
    def _(folder):
        MultiTask(backbone()).add('a', task_file(folder), nn.Linear(8, 7).double())

    @refused('a task of another base', CheckpointError, 'was trained on other base weights')
    def _(folder):
        model = backbone()
        nn.init.zeros_(model.norm.weight)
        MultiTask(model).add('a', task_file(folder))

    @refused("`dtype='half'`", ConfigError, "dtype='half': expected one of float32, float16")
    def _(folder):
        task_file(folder, dtype='half')

    @refused(
        '`float16` for values that it does not hold', CheckpointError, 'use bfloat16 or float32'
    )
    def _(folder):
        several = many()
        nn.init.constant_(several.heads['t0'].bias, 1e6)
        several.save('t0', folder / 'a.safetensors', dtype='float16')

    @refused('a model without a plan as a task', CheckpointError, 'has no adapters: apply a plan')
    def _(folder):
        save_task(backbone(), folder / 'a.safetensors')

    @refused(
        'fewer tasks than samples', PlanError, '1 tasks for 2 samples: expected the task of every'
    )
    def _(folder):
        many()(torch.ones(2, 3, 8, 8).double(), tasks=['t0'])

    @refused('an unknown task in a batch', PlanError, "(did you mean 't0'?)")
    def _(folder):
        many()(torch.ones(1, 3, 8, 8).double(), tasks=['t00'])

    @refused('a batch of several tasks in training mode', PlanError, 'call eval() first')
    def _(folder):
        many().train()(torch.ones(1, 3, 8, 8).double(), tasks=['t0'])

    @refused(
        'a batch of several tasks for a model that transposes its weight itself',
        PlanError,
        '0.weight is not used by F.linear alone',
    )
    def _(folder):
        several = MultiTask(nn.Sequential(Transposed(4, 4)).eval())
        whole = tuple(range(4))
        for name in 'ab':
            several.add(name, Plan(blocks=(Block('0.weight', (4, 4), whole, whole, 1, 0),)))
        several.eval()(torch.ones(2, 4), tasks=['a', 'b'])
