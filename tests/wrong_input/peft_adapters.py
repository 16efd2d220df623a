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
    quantize_base,
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


def changed(folder, **tensors):
    """A folder with an adapter of `vit()` and other tensors in its file of values."""
    from safetensors.torch import load_file, save_file

    file = saved(folder) / 'adapter_model.safetensors'
    save_file({**load_file(file), **tensors}, file)
    return folder


def edited(folder, **values):
    """A folder with an adapter of `vit()` and a config that was edited by hand."""
    file = saved(folder) / 'adapter_config.json'
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    return folder


def load(folder, model=None):
    _, peft = ours()
    return peft.PeftModel.from_pretrained(model or vit(), folder)


def headed():
    """Two layers and a head in a dict."""
    head = torch.nn.ModuleDict({'a': torch.nn.Linear(4, 2)})
    return torch.nn.ModuleDict({'body': torch.nn.Linear(4, 4), 'heads': head})


class Command:
    """Pickled, it is a command that runs when it is read."""

    def __reduce__(self):
        return print, ('executed',)


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

    @refused("a config whose seed is 'abc'", ConfigError, "seed='abc': expected an integer")
    def _(folder):
        load(edited(folder, seed='abc'))

    @refused(
        'a config whose fingerprint is a number', ConfigError, 'base_fingerprint=5: expected text'
    )
    def _(folder):
        load(edited(folder, base_fingerprint=5))

    @refused(
        "`modules_to_save='norm'`", ConfigError, "modules_to_save='norm': expected a list of texts"
    )
    def _(folder):
        put_on(plan(), modules_to_save='norm')

    @refused('a start that is a list', ConfigError, 'start=[1]: expected a dict or None')
    def _(folder):
        put_on(plan(), start=[1])

    @refused(
        'a start of another shape',
        PlanError,
        'blocks.0.attn.proj.weight has a first factor of (1, 2), expected a tensor (1, 4)',
    )
    def _(folder):
        put_on(plan(), start={'blocks.0.attn.proj.weight': torch.zeros(1, 2)})

    @refused(
        'a head that the model does not have',
        ConfigError,
        "has no module that ends with 'clasifier'",
    )
    def _(folder):
        put_on(plan(), modules_to_save=['clasifier'])

    @refused('an empty name as a head', ConfigError, "has no module that ends with ''")
    def _(folder):
        put_on(plan(), modules_to_save=[''])

    @refused(
        'a dict of heads as a head', ConfigError, 'heads is a ModuleDict, which has no forward'
    )
    def _(folder):
        entries = SparseMatrix('body.weight', (4, 4), (3,))
        put_on(Plan(sparse=(entries,)), headed(), modules_to_save=['heads'])

    @refused('the name of an adapter with a dot', ConfigError, "'a.b' has a dot: use another")
    def _(folder):
        cdra, _ = ours()
        put_on(plan()).add_adapter('a.b', cdra.CdraConfig(plan=plan()))

    @refused("an adapter named 'keys'", ConfigError, "'keys' is one of torch.nn.ModuleDict")
    def _(folder):
        cdra, _ = ours()
        put_on(plan()).add_adapter('keys', cdra.CdraConfig(plan=plan()))

    @refused('an unknown adapter to be merged', ConfigError, "(did you mean 'default'?)")
    def _(folder):
        put_on(plan()).merge_and_unload(adapter_names=['defualt'])

    @refused('an unknown adapter to be merged for a time', ConfigError, "no adapter 'other': those")
    def _(folder):
        put_on(plan()).merge_adapter(['other'])

    @refused('an adapter to be merged as text', ConfigError, "'default': expected a list of names")
    def _(folder):
        put_on(plan()).merge_adapter('default')

    @refused(
        'an unknown adapter beside a known one', ConfigError, "no adapter 'other': those added"
    )
    def _(folder):
        put_on(plan()).base_model.set_adapter(['default', 'other'])

    @refused(
        'an adapter for each sample of a batch',
        ConfigError,
        'a batch of several CDRA adapters is not',
    )
    def _(folder):
        put_on(plan())(torch.ones(1, 3, 8, 8), adapter_names=['default'])

    @refused('a weighted sum by nan', ConfigError, 'expected a finite number for each')
    def _(folder):
        put_on(plan()).add_weighted_adapter(['default'], [float('nan')], 'sum')

    @refused(
        'a state dict without the adapter', CheckpointError, 'give that of the whole peft model'
    )
    def _(folder):
        put_on(plan()).save_pretrained(folder, state_dict={'other': torch.ones(1)})

    @refused('a LoRA as a CDRA', ConfigError, 'is an adapter of the method')
    def _(folder):
        cdra, peft = ours()
        lora = peft.LoraConfig(target_modules=['proj'])
        peft.get_peft_model(vit(), lora).save_pretrained(folder)
        cdra.CdraConfig.from_pretrained(folder)

    @refused('half a file of values', CheckpointError, 'is truncated or no safetensors file')
    def _(folder):
        file = saved(folder) / 'adapter_model.safetensors'
        file.write_bytes(file.read_bytes()[:-9])
        load(folder)

    @refused(
        'a folder without values', CheckpointError, 'has no adapter_model.safetensors: copy it'
    )
    def _(folder):
        (saved(folder) / 'adapter_model.safetensors').unlink()
        load(folder)

    @refused(
        'a pickled file of values with a command', CheckpointError, 'nothing in it was executed'
    )
    def _(folder):
        (saved(folder) / 'adapter_model.safetensors').unlink()
        torch.save({'a': Command()}, folder / 'adapter_model.bin')
        load(folder)

    @refused('values in fp8', CheckpointError, 'cdra_values is torch.float8_e4m3fn (7,)')
    def _(folder):
        eighth = torch.ones(7).to(torch.float8_e4m3fn)
        load(changed(folder, **{'base_model.model.cdra_values': eighth}))

    @refused(
        'an adapter with another value of a weight of the base',
        CheckpointError,
        'holds other values of norm.bias, which its plan does not train',
    )
    def _(folder):
        load(changed(folder, **{'base_model.model.norm.bias': torch.ones_like(vit().norm.bias)}))

    @refused('a head of a training that diverged', CheckpointError, 'that are no numbers')
    def _(folder):
        model = put_on(plan(), modules_to_save=['norm'])
        torch.nn.init.constant_(
            model.base_model.model.norm.modules_to_save['default'].bias, torch.nan
        )
        model.save_pretrained(folder)
        load(folder)

    @refused(
        'an adapter of the base in fp32 on it in bf16',
        PlanError,
        'they are in bfloat16 here: where it was made on them in float32, load them so and convert',
    )
    def _(folder):
        load(saved(folder), vit().bfloat16())

    @refused(
        'an adapter of peft to be merged into int8', PlanError, 'a merge would be rounded to it'
    )
    def _(folder):
        put_on(plan(), quantize_base(vit())).merge_adapter()

    @refused('the same for good', PlanError, 'put the base in full precision back first')
    def _(folder):
        put_on(plan(), quantize_base(vit())).merge_and_unload()

    @refused(
        'a plan that trains a bias in part and whole',
        PlanError,
        '0.bias is trained in part and whole by one plan',
    )
    def _(folder):
        model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        put_on(Plan(also_train={'0.bias': 4}, vectors=(Vector('0.bias', 4, (1,), 1),)), model)
