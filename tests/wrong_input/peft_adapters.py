"""Adapters of peft that fit no model, or that no peft here can take."""

from __future__ import annotations

import json
from unittest import mock

import pytest
import torch

from cdra_mm.core import (
    Block,
    CheckpointError,
    ConfigError,
    Plan,
    PlanError,
    SparseMatrix,
    Vector,
    plan_from_masks,
)
from tests.models import TinyViT

from .case import heading

QKV = Block('blocks.0.attn.qkv.weight:q', (12, 12), (0, 3, 5), (1, 2), 1, 3)


def ours():
    """The package and peft, or the test is skipped."""
    peft = pytest.importorskip('peft', '0.21', reason='peft (extra peft) is not installed')
    import cdra_mm.peft

    return cdra_mm.peft, peft


def vit(seed=0):
    torch.manual_seed(seed)
    return TinyViT()


def put_on(plan, model=None, **settings):
    cdra, peft = ours()
    return peft.get_peft_model(model or vit(), cdra.CdraConfig(plan=plan, **settings))


def plan():
    width = vit().blocks[0].attn.proj.weight.shape[0]
    mask = torch.zeros(width, width, dtype=torch.bool)
    mask[:3, :4] = True
    return plan_from_masks({'blocks.0.attn.proj.weight': mask}, rank_rule=1)


def saved(folder):
    """A folder with an adapter of `vit()`."""
    put_on(plan()).save_pretrained(folder)
    return folder


def peft_of(release):
    """As if another release of peft, or none, were installed."""
    ours()
    from importlib.metadata import PackageNotFoundError

    from cdra_mm.peft import requirement

    def version(name):
        if release is None:
            raise PackageNotFoundError(name)
        return release

    with mock.patch.object(requirement, 'version', version):
        requirement.require_peft()


with heading('Adapters of Hugging Face peft') as (refused, taken):

    @refused('no peft', ConfigError, 'needs peft 0.21 or newer, none is installed')
    def _(folder):
        peft_of(None)

    @refused('an older peft', ConfigError, 'needs peft 0.21 or newer, here is 0.18.1')
    def _(folder):
        peft_of('0.18.1')

    @taken('a release candidate of a newer peft', 'it is used')
    def _(folder):
        peft_of('1.0rc1')

    @refused('a config without a plan', ConfigError, 'has no plan, so nothing says what to train')
    def _(folder):
        put_on(None)

    @refused(
        'the config that `PeftConfig.from_pretrained` reads',
        ConfigError,
        'CdraConfig.from_pretrained(folder)',
    )
    def _(folder):
        _, peft = ours()
        peft.get_peft_model(vit(), peft.PeftConfig.from_pretrained(saved(folder)))

    @refused('a plan as a dict', ConfigError, 'plan is a dict: expected a cdra_mm.core.Plan')
    def _(folder):
        put_on(plan().to_record())

    @refused('an empty plan for peft', PlanError, 'trains nothing: give it a larger budget')
    def _(folder):
        put_on(Plan())

    @refused(
        'a plan of prompts for peft',
        PlanError,
        "the first is layers.0.prompts, of the kind 'prompts'",
    )
    def _(folder):
        from cdra_mm.core import Part

        put_on(Plan('vpt_deep', parts=(Part('layers.0.prompts', 'prompts', {}, 4),)))

    @refused('a config of another architecture', PlanError, 'made for another architecture')
    def _(folder):
        put_on(Plan(blocks=(QKV,)), torch.nn.Sequential(torch.nn.Linear(4, 4)))

    @refused('a config of a larger model', PlanError, 'it belongs to another architecture')
    def _(folder):
        put_on(Plan(blocks=(Block('blocks.0.attn.proj.weight', (99, 99), (0,), (98,), 1, 1),)))

    @refused(
        'a block on an embedding', PlanError, '(5, 4) is of a Embedding, which is no linear layer'
    )
    def _(folder):
        model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4))
        put_on(Plan(blocks=(Block('0.weight', (5, 4), (0,), (1,), 1, 1),)), model)

    @refused('a block on a convolution', PlanError, 'is of a Conv2d, which is no linear layer')
    def _(folder):
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2))
        put_on(Plan(blocks=(Block('0.weight', (4, 12), (0,), (1,), 1, 1),)), model)

    @taken('a convolution that is trained whole', 'what is added to it is trained')
    def _(folder):
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2))
        put_on(Plan(also_train={'0.weight': 48}, vectors=(Vector('0.bias', 4, None, 1),)), model)

    @refused(
        'a head that is planned and saved whole',
        PlanError,
        'lies in 1, which modules_to_save trains whole',
    )
    def _(folder):
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
        entries = SparseMatrix('1.weight', (2, 4), (3,))
        put_on(Plan(sparse=(entries,)), model, modules_to_save=['1'])

    @refused('an adapter of another base', PlanError, 'made for other base weights')
    def _(folder):
        _, peft = ours()
        peft.PeftModel.from_pretrained(vit(1), saved(folder))

    @refused(
        'a file of values without a plan', CheckpointError, 'it lacks base_model.model.cdra_plan'
    )
    def _(folder):
        from safetensors.torch import load_file, save_file

        cdra, _ = ours()
        file = saved(folder) / 'adapter_model.safetensors'
        tensors = load_file(file)
        del tensors['base_model.model.cdra_plan']
        save_file(tensors, file)
        cdra.CdraConfig.from_pretrained(folder)

    @refused('a damaged plan in a file of values', CheckpointError, 'the packed plan is damaged')
    def _(folder):
        from safetensors.torch import load_file, save_file

        _, peft = ours()
        file = saved(folder) / 'adapter_model.safetensors'
        tensors = load_file(file)
        tensors['base_model.model.cdra_plan'][20:40] = 0
        save_file(tensors, file)
        peft.PeftModel.from_pretrained(vit(), folder)

    @refused('values of a training that diverged', CheckpointError, 'that are no finite numbers')
    def _(folder):
        _, peft = ours()
        model = put_on(plan())
        next(p for p in model.parameters() if p.requires_grad).data.fill_(float('nan'))
        model.save_pretrained(folder)
        peft.PeftModel.from_pretrained(vit(), folder)

    @refused('too few values', CheckpointError, 'its plan trains 7 values')
    def _(folder):
        from safetensors.torch import load_file, save_file

        _, peft = ours()
        file = saved(folder) / 'adapter_model.safetensors'
        tensors = load_file(file)
        key = 'base_model.model.cdra_values'
        save_file({**tensors, key: tensors[key][:-1].clone()}, file)
        peft.PeftModel.from_pretrained(vit(), folder)

    @refused('a fingerprint that is none', PlanError, 'made for other base weights')
    def _(folder):
        _, peft = ours()
        file = saved(folder) / 'adapter_config.json'
        file.write_text(json.dumps({**json.loads(file.read_text()), 'base_fingerprint': '3:x'}))
        peft.PeftModel.from_pretrained(vit(), folder)
