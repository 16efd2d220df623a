"""The optimizer holds exactly what is trained, each treated as its base parameter would be."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIMIZERS
from torch.optim import SGD

from cdra_mm.core import adapters, apply_plan, find_targets, plan_of, remove_adapters
from cdra_mm.core.adapters.adapted import planned_parameters
from cdra_mm.core.adapters.entries import Entries
from cdra_mm.methods import Request, make_method
from cdra_mm.methods.apla import Rows
from cdra_mm.methods.rlrr import Shift
from cdra_mm.mm.optimizer_parameters import build_optimizer, named_optimizers
from cdra_mm.mm.parameter_groups import join_groups

from . import toy
from .scenarios import plain, ready
from .test_life_cycle import Stop, assert_same, weights

SETTINGS = {
    'cdra': dict(num_sensitive=900, beta=1, rank_rule='count'),  # vectors are trained in part
    'spt_lora': dict(num_sensitive=900, beta=1, alpha=1),
    'rlrr': {},
    'apla': dict(partial_size=4),
}

PARAMWISE = dict(
    bias_lr_mult=2.0,
    bias_decay_mult=0.0,
    norm_decay_mult=0.1,
    flat_decay_mult=0.5,
    custom_keys={'layers.1.attn.proj.bias': dict(lr_mult=0.25, decay_mult=3.0)},
)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class ByShape:
    """A constructor of a project: two optimizers, and no decay of what has one dimension."""

    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None) -> None:
        pass

    def __call__(self, model) -> OptimWrapperDict:
        def built(module, lr) -> OptimWrapper:
            own = [p for p in module.parameters() if p.requires_grad]
            groups = [
                dict(params=[p for p in own if (p.dim() > 1) is matrices], weight_decay=decay)
                for matrices, decay in ((True, 0.1), (False, 0.0))
            ]
            return OptimWrapper(torch.optim.AdamW(groups, lr=lr))

        return OptimWrapperDict(
            backbone=built(model.backbone, 1e-3), head=built(model.decode_head, 1e-2)
        )


@OPTIMIZERS.register_module(force=True)
class Heavy(SGD):
    """An optimizer of a project: a state for every parameter as soon as it is built."""

    def __init__(self, params, **kwargs) -> None:
        super().__init__(params, **kwargs)
        for group in self.param_groups:
            for parameter in group['params']:
                self.state[parameter]['sum'] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for parameter in group['params']:
                if parameter.grad is not None:
                    self.state[parameter]['sum'] += parameter.grad
                    parameter -= group['lr'] * self.state[parameter]['sum']


@pytest.fixture(scope='module')
def runner(tmp_path_factory):
    return ready(tmp_path_factory.mktemp('runner'))


def built(runner, name: str, config: dict):
    """The backbone with a method's plan, and the wrapper of that config."""
    backbone = plain(runner).backbone
    remove_adapters(backbone, discard=True)
    generator = torch.Generator().manual_seed(0)
    shapes = {n: t.shape for n, t in find_targets(backbone).items()}
    scores = {n: torch.rand(shape, generator=generator) for n, shape in shapes.items()}
    plan = make_method(dict(type=name, **SETTINGS[name])).plan(Request(backbone, scores))
    apply_plan(backbone, plan)
    return backbone, build_optimizer(runner, backbone, config)


def entries(backbone, *kinds):
    """Each adapter that adds to entries of a parameter: its layer's path, parameter and tensor."""
    for name, adapter in adapters(backbone).items():
        if isinstance(adapter, kinds):
            (tensor,) = adapter.parameters()
            yield name.rpartition('.')[0], adapter.parameter, tensor


def held_by(wrapper) -> dict[int, tuple[float, float]]:
    """Rate and decay of what an optimizer holds; nothing is held twice."""
    held = [
        (id(p), (round(group['lr'], 9), round(group['weight_decay'], 9)))
        for _, optimizer in named_optimizers(wrapper)
        for group in optimizer.param_groups
        for p in group['params']
    ]
    assert len(held) == len(dict(held))
    return dict(held)


@pytest.mark.parametrize('name', SETTINGS)
def test_what_is_trained_in_part_is_treated_as_the_whole_by_paramwise_cfg(runner, name):
    optimizer = dict(type='AdamW', lr=1e-2, weight_decay=0.05)
    wrapper = dict(optimizer=optimizer, paramwise_cfg=PARAMWISE)
    backbone, wrapper = built(runner, name, wrapper)
    found = held_by(wrapper)
    seen: set[str] = set()
    for path, parameter, tensor in entries(backbone, Entries, Shift, Rows):
        if 'layers.1.attn.proj' in path and parameter == 'bias':
            kind, expected = 'custom', (0.0025, 0.15)
        elif path.rpartition('.')[2].startswith('ln'):
            kind, expected = 'norm', (0.01, 0.005)
        elif parameter == 'bias':
            kind, expected = 'bias', (0.02, 0.0)
        else:
            # flat_decay_mult is of parameters with one dimension, which its matrix has not.
            kind, expected = 'matrix', (0.01, 0.05)
        assert found[id(tensor)] == expected, (path, parameter)
        seen.add(kind)
    assert {'bias', 'custom'} <= seen
    assert name not in ('spt_lora', 'apla') or 'matrix' in seen
    assert set(found) == {id(p) for p in plain(runner).parameters() if p.requires_grad}


def test_a_constructor_of_a_project_sees_the_matrix_of_single_entries(runner):
    backbone, wrapper = built(runner, 'spt_lora', dict(constructor='ByShape'))
    found = held_by(wrapper)
    assert set(found) == {id(p) for p in plain(runner).parameters() if p.requires_grad}
    dims = set()
    for path, parameter, tensor in entries(backbone, Entries):
        dim = backbone.get_submodule(path)._parameters[parameter].dim()
        assert found[id(tensor)] == (1e-3, 0.1 if dim == 2 else 0.0)
        dims.add(dim)
    assert dims == {1, 2}


def test_without_paramwise_cfg_every_trained_parameter_is_held_once(runner):
    _, wrapper = built(runner, 'spt_lora', dict(optimizer=dict(type='AdamW', lr=1e-2)))
    assert set(held_by(wrapper)) == {id(p) for p in plain(runner).parameters() if p.requires_grad}


def test_a_frozen_parameter_stays_frozen_where_the_constructor_fails(runner):
    with pytest.raises(KeyError):
        built(runner, 'spt_lora', dict(constructor='Nobody', optimizer=dict(type='SGD', lr=0.1)))
    backbone = plain(runner).backbone
    trained = {n for n, p in backbone.named_parameters() if p.requires_grad}
    assert trained == set(planned_parameters(backbone, plan_of(backbone)))


@pytest.mark.parametrize('kind', ['Adagrad', 'Heavy'])
def test_an_optimizer_with_state_at_once_saves_and_resumes(tmp_path, kind):
    optimizer = dict(type=kind, lr=1e-2, weight_decay=0.01)
    wrapper = dict(optimizer=optimizer, paramwise_cfg=PARAMWISE)

    def config(work_dir: str, **options):
        cfg = toy.config(
            tmp_path, 'cls', optim_wrapper=wrapper, work_dir=str(tmp_path / work_dir), **options
        )
        cfg.train_cfg.max_iters = 4
        cfg.default_hooks.checkpoint.interval = 2
        cfg.param_scheduler = None
        return cfg

    whole = toy.train(config('whole'))
    assert set(whole.optim_wrapper.optimizer.state) == {
        p for group in whole.optim_wrapper.optimizer.param_groups for p in group['params']
    }
    with pytest.raises(Stop):
        toy.train(config('cut', custom_hooks=[dict(type='StopAt', at=2)]))
    assert_same(weights(toy.train(config('cut', resume=True))), weights(whole))


def test_groups_whose_settings_cannot_be_compared_stay_apart():
    def joined(*settings):
        parameters = [torch.nn.Parameter(torch.ones(1)) for _ in settings]
        groups = [dict(params=[p], **s) for p, s in zip(parameters, settings, strict=True)]
        optimizer = SGD(groups, lr=0.1)
        runner = SimpleNamespace(optim_wrapper=OptimWrapper(optimizer), param_schedulers=None)
        join_groups(runner)
        join_groups(runner)  # once is enough
        held = [[id(p) for p in group['params']] for group in optimizer.param_groups]
        return [[[id(p) for p in parameters].index(i) for i in ids] for ids in held]

    rate = torch.tensor(0.1)
    assert joined(dict(lr=rate), dict(lr=torch.tensor(0.1)), dict(lr=rate)) == [[0, 2], [1]]
    assert joined(dict(lr=0.1), dict(lr=0.1, own=0.0), dict(lr=0.1)) == [[0, 2], [1]]
    assert joined(dict(lr=1), dict(lr=True), dict(lr=1.0)) == [[0], [1], [2]]
    assert joined(dict(names=['a']), dict(names=['b']), dict(names=['a'])) == [[0, 2], [1]]
    pair = torch.ones(2), torch.ones(2)
    assert joined(dict(betas=pair), dict(betas=(*pair[:1], torch.ones(2)))) == [[0], [1]]
