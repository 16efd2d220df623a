"""Settings that are wrong, or only look so."""

from __future__ import annotations

import copy
from functools import partial
from math import inf, nan
from types import SimpleNamespace

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner
from mmpretrain.models import ImageClassifier

from cdra_mm import CDRAHook
from cdra_mm.core import (
    ConfigError,
    PlanError,
    apply_plan,
    find_targets,
    load_adapter,
    make_plan,
    plan_from_masks,
    save_adapter,
)
from cdra_mm.core.model.exclusion import exclude_targets
from cdra_mm.methods import Request, make_method
from cdra_mm.mm.config_faults import config_fault
from cdra_mm.mm.inputs import check_inputs
from cdra_mm.mm.late_faults import check_late_words
from cdra_mm.mm.launch import load_config, prepare_config
from tests.mm import toy
from tests.models import TinyViT, images

from .case import heading

TARGET = 'blocks.0.attn.proj.weight'


def scores(model):
    return {name: torch.rand_like(p) for name, p in model.named_parameters() if 'blocks' in name}


def runs(model, plan):
    """An adapted copy gives finite outputs."""
    adapted = apply_plan(copy.deepcopy(model), plan).eval()
    assert torch.isfinite(adapted(images(2)[0])).all()
    return adapted


def run(folder, changes):
    """Trains with a changed config, and tells of it as a command does."""
    cfg = toy.config(folder)
    cfg.merge_from_dict(changes)
    try:
        toy.train(cfg)
    except Exception as error:
        raise config_fault(error) or error from error


def validated(evaluator, *hooks):
    """A runner that has not begun, of three classes."""
    return SimpleNamespace(
        cfg=Config(dict(val_cfg={}, val_evaluator=evaluator)),
        hooks=hooks,
        model=ImageClassifier(
            backbone=dict(type='mmpretrain.LeNet5'),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=4),
        ),
        save_checkpoint=partial(Runner.save_checkpoint, None),
    )


class ToTokens(torch.nn.Module):
    """A map as tokens."""

    def forward(self, x):
        return x.flatten(2).transpose(1, 2)


with heading('Settings') as (refused, taken):

    @refused('an unknown setting', ConfigError, "'gama' (did you mean 'gamma'?)")
    def _(folder):
        CDRAHook(gama=0.1)

    @refused('an unknown method', ConfigError, "'lineer' is unknown (did you mean 'linear'?)")
    def _(folder):
        CDRAHook(method=dict(type='lineer'))

    @refused('scores in fp16', ConfigError, "score_dtype='float16': expected one of float32")
    def _(folder):
        CDRAHook(score_dtype='float16')

    @refused(
        'an option that `torch.compile` lacks',
        ConfigError,
        "compile: 'speed' is unknown: expected one of fullgraph",
    )
    def _(folder):
        CDRAHook(compile={'speed': 'high'})

    @refused(
        'a backend of `torch.compile` that the kernels cannot be run by',
        ConfigError,
        "give mode='reduce-overhead', which records CUDA graphs too",
    )
    def _(folder):
        CDRAHook(compile={'backend': 'cudagraphs'})

    @refused('a mode that `torch.compile` lacks', ConfigError, 'torch.compile refuses it')
    def _(folder):
        CDRAHook(compile={'mode': 'fastest'})

    @refused('a base in int4', ConfigError, "base_dtype='int4': expected None (as it is loaded)")
    def _(folder):
        CDRAHook(base_dtype='int4')

    @refused('a base in int8 that is stored', ConfigError, 'no base in full precision to store')
    def _(folder):
        CDRAHook(base_dtype='int8', save_base=True)

    @refused('a base in int8 of which all is trained', ConfigError, 'trains the whole backbone')
    def _(folder):
        CDRAHook(base_dtype='int8', method=dict(type='full'))

    @refused("a method that is no dict: `method='lora'`", ConfigError, 'expected a dict such as')
    def _(folder):
        CDRAHook(method='lora')

    @refused(
        "a value of the wrong type: `budget_params='a lot'`",
        ConfigError,
        "budget_params='a lot': expected an integer",
    )
    def _(folder):
        CDRAHook(budget_params='a lot')

    @refused('a number that is none: `beta=nan`', ConfigError, 'beta=nan: expected a finite number')
    def _(folder):
        CDRAHook(beta=float('nan'))

    @refused('`num_samples=True`', ConfigError, 'num_samples=True: expected an integer')
    def _(folder):
        CDRAHook(num_samples=True)

    @refused('`seed=-1`', ConfigError, 'seed=-1: expected a count of at least 0')
    def _(folder):
        CDRAHook(seed=-1)

    @refused('a count that no tensor holds', ConfigError, 'expected an integer')
    def _(folder):
        CDRAHook(num_samples=10**30)

    @refused(
        "`exclude='norms'`",
        ConfigError,
        "exclude: 'norms' is nothing that competes (did you mean 'norm'?)",
    )
    def _(folder):
        exclude_targets(find_targets(TinyViT()), ('norms',))

    @refused('`exclude` of everything', ConfigError, "exclude=['blocks'] leaves nothing to compete")
    def _(folder):
        exclude_targets(find_targets(TinyViT()), ['blocks'])

    for name, alpha in (('0', 0), ('-1', -1), ('nan', nan), ('inf', inf), ("'twice'", 'twice')):

        @refused(f'`rank_alpha={name}`', ConfigError, f'rank_alpha={alpha!r}: expected a ')
        def _(folder, alpha=alpha):
            CDRAHook(rank_alpha=alpha)

    @refused(
        'a factor for ranks that are fixed: `rank_rule=8, rank_alpha=20`',
        ConfigError,
        'rank_alpha=20 with rank_rule=8: a fixed rank does not depend on the selected entries',
    )
    def _(folder):
        CDRAHook(rank_rule=8, rank_alpha=20)

    @refused(
        "`allocation='energie'`", ConfigError, "allocation='energie': expected one of 'descent'"
    )
    def _(folder):
        CDRAHook(allocation='energie')

    @refused(
        "settings of the paper's steps beside `'descent'`: `rank_rule='count'`",
        ConfigError,
        "rank_rule='count': not used with allocation='descent'",
    )
    def _(folder):
        CDRAHook(allocation='descent', rank_rule='count')

    @refused(
        "`start='gradient'` without gradients",
        ConfigError,
        "start='gradient': not used with allocation='scores'",
    )
    def _(folder):
        CDRAHook(start='gradient', allocation='scores')

    @refused(
        "a setting of `'descent'` beside one of the paper's: `max_rank=4`, `gamma=0.1`",
        ConfigError,
        "max_rank=4: goes with allocation='descent', gamma with 'scores'; leave it out, or set",
    )
    def _(folder):
        CDRAHook(max_rank=4, gamma=0.1)

    @refused('`head_iters=-1`', ConfigError, 'head_iters=-1: expected a count of at least 0')
    def _(folder):
        CDRAHook(head_iters=-1)

    @refused('two budgets', ConfigError, 'give only one of')
    def _(folder):
        CDRAHook(gamma=0.1, budget_params=1000)

    @taken('no budget', '`budget_percent=0.5`, half a percent of the backbone')
    def _(folder):
        assert CDRAHook().method.budget_percent == 0.5

    @refused('no budget in Python: `make_plan(scores)`', PlanError, 'give exactly one of them')
    def _(folder):
        make_plan({'m': torch.rand(4, 4)})

    @refused('`gamma` outside (0, 1]', ConfigError, 'gamma=1.5: expected a fraction in (0, 1]')
    def _(folder):
        CDRAHook(gamma=1.5)

    @taken(
        '`gamma=1`: everything is selected',
        'every matrix gets its adapter, every vector is trained',
    )
    def _(folder):
        model = TinyViT()
        plan = make_plan(scores(model), gamma=1)
        assert plan.num_sensitive == plan.num_competing
        runs(model, plan)

    @refused('a budget too small for any adapter', PlanError, 'budget_params=3 is too small')
    def _(folder):
        make_plan(scores(TinyViT()), budget_params=3)

    @refused(
        'more sensitive entries than there are',
        PlanError,
        'expected a count from 1 to 16, the number of competing entries',
    )
    def _(folder):
        make_plan({'m': torch.rand(4, 4)}, num_sensitive=17)

    @refused('a role that the backbone lacks', PlanError, "no matrix of the role 'w3'")
    def _(folder):
        make_method(dict(type='lora', targets=['w3'])).plan(Request(TinyViT()))

    @refused(
        'more outputs for `apla` than a projection has',
        PlanError,
        'has 8 outputs: expected partial_size=9 to be at most that',
    )
    def _(folder):
        make_method(dict(type='apla', partial_size=9)).plan(Request(TinyViT()))

    @refused(
        'a matrix for `soma` whose smallest singular values are the same',
        PlanError,
        'its smallest singular values number 2 and 3 are 1 and 1',
    )
    def _(folder):
        model = TinyViT()
        torch.nn.init.eye_(model.get_parameter(TARGET))
        method = make_method(dict(type='soma', rank=2, frozen_blocks=0))
        apply_plan(model, method.plan(Request(model)))

    @refused(
        '`mona` on a backbone that embeds its patches by no convolution',
        PlanError,
        'has no convolution before its transformer blocks: mona convolves the grid',
    )
    def _(folder):
        model = TinyViT()
        model.patch_embed = torch.nn.Flatten()
        make_method(dict(type='mona')).plan(Request(model))

    @refused(
        '`mona` on blocks that norm behind their branches',
        PlanError,
        'does not norm its tokens between attention and FFN',
    )
    def _(folder):
        layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 4), ToTokens(), layer)
        apply_plan(model, make_method(dict(type='mona', bottleneck=2)).plan(Request(model)))
        model(images(2)[0])

    @refused('`mona` on a backbone with `with_cp`', PlanError, 'switch with_cp off in the config')
    def _(folder):
        model = TinyViT()
        model.blocks[0].with_cp = True
        apply_plan(model, make_method(dict(type='mona', bottleneck=2)).plan(Request(model)))

    @refused(
        '`cdra` and `default_hooks.cdra` that contradict each other',
        ConfigError,
        'cdra says gamma=0.1, default_hooks.cdra says 0.2: keep one',
    )
    def _(folder):
        prepare_config(Config(dict(cdra=dict(gamma=0.1), default_hooks=dict(cdra=dict(gamma=0.2)))))

    @refused('a `cdra` block that is no dict', ConfigError, 'cdra=0.5: expected a dict such as')
    def _(folder):
        prepare_config(Config(dict(cdra=0.5)))

    @refused('a config that is not there', ConfigError, "(did you mean 'demo.py'?)")
    def _(folder):
        (folder / 'demo.py').touch()
        load_config(folder / 'dmeo.py')

    @refused('a config that is no Python', ConfigError, 'SyntaxError')
    def _(folder):
        (folder / 'broken.py').write_text('model = dict(')
        load_config(folder / 'broken.py')

    @refused(
        'a setting that a class of OpenMMLab does not know',
        ConfigError,
        "train_dataloader: DataLoader has no setting 'bath_size' (did you mean 'batch_size'?)",
    )
    def _(folder):
        run(folder, {'train_dataloader.bath_size': 4})

    @refused(
        'a figure to keep the best of that the validation does not give',
        ConfigError,
        "gives no figure to save_best 'mIou' (did you mean 'mIoU'?)",
    )
    def _(_):
        checkpoint = CheckpointHook(save_best='mIou', rule='greater')
        check_late_words(validated(dict(type='mmseg.IoUMetric'), checkpoint), 'train')

    @refused(
        'a figure that the metric does not have',
        ConfigError,
        "val_evaluator.iou_metrics=['mIOU']: IoUMetric cannot compute it",
    )
    def _(_):
        check_late_words(validated(dict(type='mmseg.IoUMetric', iou_metrics=['mIOU'])), 'train')

    @refused(
        'the best five of three classes',
        ConfigError,
        'val_evaluator.topk=(1, 5): the head has 3 classes, so that the best 5 are no figure',
    )
    def _(_):
        check_late_words(validated(dict(type='mmpretrain.Accuracy', topk=(1, 5))), 'train')

    @refused(
        'a type that OpenMMLab does not have',
        ConfigError,
        "model.backbone: type='mmpretrain.VisonTransformer': there is no model of this name",
    )
    def _(folder):
        run(folder, {'model.backbone.type': 'mmpretrain.VisonTransformer'})

    @refused(
        'a value that its class refuses',
        ConfigError,
        'optim_wrapper.optimizer: AdamW cannot be built: ValueError: Invalid learning rate: -1',
    )
    def _(folder):
        run(folder, {'optim_wrapper.optimizer.lr': -1})

    @refused(
        'a head of another width than the backbone',
        ConfigError,
        'model.decode_head.convs.0.conv (Conv2d) is given another width than it was built for',
    )
    def _(folder):
        run(folder, {'model.decode_head.in_channels': 64})

    @refused(
        'a config without a training loader', ConfigError, 'the config has no train_dataloader'
    )
    def _(folder):
        check_inputs(
            Config(dict(model={'type': 'X'}, train_cfg={'a': 1}, optim_wrapper={'a': 1})), 'train'
        )

    @refused(
        'a loader without workers that are to persist',
        ConfigError,
        'train_dataloader.num_workers=0: persistent_workers=True needs workers; give '
        'train_dataloader.persistent_workers=False too',
    )
    def _(folder):
        loader = dict(num_workers=0, persistent_workers=True, dataset=dict(type='X'))
        whole = dict(model={'type': 'X'}, train_cfg={'a': 1}, optim_wrapper={'a': 1})
        check_inputs(Config(dict(whole, train_dataloader=loader)), 'train')


with heading('Plans') as (refused, taken):

    @taken('a matrix without a sensitive entry', 'it is not in the plan and stays frozen')
    def _(folder):
        mask = torch.zeros(8, 8, dtype=torch.bool)
        mask[:4, :4] = True
        other = 'blocks.1.attn.proj.weight'
        plan = plan_from_masks({TARGET: mask, other: torch.zeros_like(mask)}, rank_rule=1)
        assert [block.name for block in plan.blocks] == [TARGET]
        weight = runs(TinyViT(), plan).get_parameter(other)
        assert not weight.requires_grad

    @taken('a plan with one adapter', 'it is applied, saved and loaded like any other')
    def _(folder):
        model = TinyViT()
        adapted = runs(model, plan_from_masks({TARGET: torch.ones(8, 8).bool()}, rank_rule=1))
        save_adapter(adapted, folder / 'a.safetensors')
        assert len(load_adapter(model, folder / 'a.safetensors').blocks) == 1

    @refused('a plan file that is not there', ConfigError, 'cannot be read')
    def _(folder):
        from cdra_mm.mm.planning.given_plan import read_plan

        read_plan(folder / 'cdra_plan.json')

    @refused('a plan file that is cut off', PlanError, 'the plan is not JSON')
    def _(folder):
        plan_from_json(lambda text: text[:-9])

    @refused('a plan in which a name stands twice', PlanError, "'method' stands twice")
    def _(folder):
        plan_from_json(lambda text: text.replace('{', '{"method": "lora", ', 1))

    @refused('a plan of another version', PlanError, 'make the plan anew')
    def _(folder):
        plan_from_json(lambda text: text.replace('"version": 2', '"version": 1'))

    @refused('a plan that contradicts itself', PlanError, 'rank 9 exceeds the block of 8 x 8')
    def _(folder):
        plan_from_json(lambda text: text.replace('"rank": 1', '"rank": 9'))

    @refused('a plan for another architecture', PlanError, 'it belongs to another architecture')
    def _(folder):
        apply_plan(TinyViT(dim=16), plan())

    @refused('a plan for other base weights', PlanError, 'the plan was made for other base weights')
    def _(folder):
        apply_plan(TinyViT(), plan(fingerprint='0' * 64))

    @refused('a plan on a model that has one', PlanError, 'is adapted already')
    def _(folder):
        apply_plan(apply_plan(TinyViT(), plan()), plan())


def plan(**options):
    return plan_from_masks({TARGET: torch.ones(8, 8).bool()}, rank_rule=1, **options)


def plan_from_json(change):
    from cdra_mm.core import Plan

    text = change(plan().to_json())
    assert text != plan().to_json()
    Plan.from_json(text)
