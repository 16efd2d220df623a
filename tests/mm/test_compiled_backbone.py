"""A backbone that is compiled in training trains what it trains uncompiled, as one graph."""

from __future__ import annotations

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.utils import digit_version
from torch import nn

from cdra_mm.errors import ConfigError
from cdra_mm.mm import compiled_backbone
from cdra_mm.mm.compiled_backbone import MOST_SHAPES, compile_backbone, leave_uncompiled
from cdra_mm.mm.hook import CDRAHook

from . import toy
from .test_life_cycle import weights
from .test_resume import ADAMW, WINDOW, amp, amp_on_cpu, assert_exact, config

assert amp_on_cpu  # a fixture
GRAPHS: list[torch.fx.GraphModule] = []


@torch._dynamo.register_backend(name='cdra_tests')
def _counted(graph, inputs):
    """Torch's own tracing of forward and backward, without its code generator."""
    GRAPHS.append(graph)
    return torch._dynamo.lookup_backend('aot_eager')(graph, inputs)


@torch._dynamo.register_backend(name='cdra_broken')
def _broken(graph, inputs):
    raise RuntimeError('no C++ compiler\nis here')


COUNTED = dict(backend='cdra_tests')
# Torch 2.6 cannot trace the blocks of mmcv and mmpretrain, so nothing is compiled; 2.14 can.
traces = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.14'),
    reason='older releases of torch may not trace the blocks of OpenMMLab',
)


@pytest.fixture(autouse=True)
def _compiled_anew():
    torch.compiler.reset()
    GRAPHS.clear()


@pytest.fixture
def said(monkeypatch):
    """What is logged as a warning or as information."""
    lines = []
    for name in ('warning', 'info'):
        monkeypatch.setattr(MMLogger, name, lambda _, text, *a, name=name: lines.append(str(text)))
    return lines


LOOP = dict(type='IterBasedTrainLoop', max_iters=6)
CASES = {
    'plain': dict(),
    'copied': dict(cdra=dict(product='copied')),
    'validated midway': dict(train_cfg=dict(**LOOP, val_interval=2)),
    'accumulation': dict(optim_wrapper=WINDOW),
    'averaged weights': dict(custom_hooks=[dict(type='EMAHook', momentum=0.1)]),
    'LoRA': dict(cdra=dict(method=dict(type='lora', rank=2))),
    'all weights': dict(cdra=dict(method=dict(type='full'))),
    'groups': dict(
        optim_wrapper=dict(
            type='OptimWrapper', optimizer=ADAMW,
            paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=5.0))),
        )
    ),
}  # fmt: skip


def trained(folder, name, options, **cdra):
    options = {**options, 'cdra': {**options.get('cdra', {}), **cdra}}
    return toy.train(config(folder, name, **options))


@traces
@pytest.mark.parametrize('case', CASES)
def test_training_is_the_same_and_one_graph(tmp_path, case):
    mine = trained(tmp_path, 'compiled', CASES[case], compile=COUNTED)
    assert len(GRAPHS) == 1
    assert mine.model.backbone._compiled_call_impl is None, 'training is over'
    theirs = trained(tmp_path, 'plain', CASES[case])
    assert len(GRAPHS) == 1
    theirs = weights(theirs)
    for name, value in weights(mine).items():
        torch.testing.assert_close(value, theirs[name], rtol=2e-3, atol=2e-4)


@traces
def test_half_precision_is_compiled_too(tmp_path, amp_on_cpu):
    options = dict(optim_wrapper=amp('bfloat16'))
    mine = weights(trained(tmp_path, 'compiled', options, compile=COUNTED))
    theirs = weights(trained(tmp_path, 'plain', options))
    assert len(GRAPHS) == 1
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=0.1, atol=0.02)


def test_compiled_runs_resume_exactly(tmp_path):
    assert_exact(config, tmp_path, (3,), cdra=dict(compile=COUNTED))


def test_compile_of_the_config_trains_with_groups_of_parameters(tmp_path):
    """Torch traces the optimizer of such a config into an error of its own (2.14)."""
    options = dict(CASES['groups'], compile=dict(backend='eager'))
    mine = weights(trained(tmp_path, 'compiled', options))
    theirs = weights(trained(tmp_path, 'plain', CASES['groups']))
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=2e-3, atol=2e-4)


def test_compile_stands_in_one_place(tmp_path, monkeypatch):
    """Said before anything is scored."""
    monkeypatch.delattr(CDRAHook, 'before_train')
    with pytest.raises(ConfigError, match='leave one of them out'):
        trained(tmp_path, 'both', dict(compile=dict(backend='eager')), compile=COUNTED)


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        ('yes', r"compile='yes': expected"),
        (dict(speed='high'), "compile: 'speed' is unknown: expected one of fullgraph, dynamic"),
        (dict(backend='nothing'), r'torch.compile refuses it: .*nothing'),
        (dict(mode='fastest'), r'torch.compile refuses it: .*fastest'),
        (dict(fullgraph='no'), "fullgraph='no' is none of its values"),
        (dict(backend=3), 'backend=3 is none of its values'),
        (dict(backend='cudagraphs'), "give mode='reduce-overhead'"),
        (dict(disable=True), "'disable' is unknown"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_done(given, said):
    with pytest.raises(ConfigError, match=said):
        CDRAHook(compile=given)


def test_options_may_be_those_that_torch_compile_has_by_default():
    given = inspect.signature(torch.compile).parameters
    CDRAHook(compile={name: given[name].default for name in ('fullgraph', 'dynamic', 'mode')})


@traces
def test_what_cannot_be_compiled_trains_all_the_same(tmp_path, said):
    mine = weights(trained(tmp_path, 'broken', {}, compile=dict(backend='cdra_broken')))
    told = [line for line in said if 'not compiled' in line]
    assert len(told) == 1
    assert 'not compiled: RuntimeError: no C++ compiler (TORCH_LOGS' in told[0]
    theirs = weights(trained(tmp_path, 'plain', {}))
    for name, value in mine.items():
        assert torch.equal(value, theirs[name])


class Breaks(nn.Module):
    """Asks for a value within its forward, which torch cannot trace."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.wrong = False

    def forward(self, x):
        if self.wrong:
            raise ValueError('of the model')
        return self.inner(x) if x.sum() > 0 else self.inner(-x)


class Traced(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.drop_prob = nn.Linear(3, 2), np.float64(0.0)

    def forward(self, x):
        return x if self.drop_prob > 1 else self.inner(x)


def compiled(module, **options):
    compile_backbone(module, {'backend': 'cdra_tests', **options})
    return module.train()


@traces
def test_a_graph_that_would_break_is_none(said):
    module = compiled(Breaks())
    x = torch.ones(2, 3)
    for _ in range(2):
        assert torch.equal(module(x), module.inner(x))
    (told,) = [line for line in said if 'not compiled' in line]
    assert 'Unsupported' in told
    assert 'Explanation: ' in told
    assert not GRAPHS


def test_errors_of_the_model_are_its_own():
    module = compiled(Breaks())
    module.wrong = True
    with pytest.raises(ValueError, match='of the model'):
        module(torch.ones(2, 3))


def test_numbers_of_numpy_do_not_end_the_graph():
    module = compiled(Traced())
    x = torch.ones(2, 3)
    torch.testing.assert_close(module(x), module.inner(x))
    assert len(GRAPHS) == 1
    assert type(module.drop_prob) is float


def test_only_training_is_compiled():
    module = compiled(Traced())
    module.eval()(torch.ones(2, 3))
    with torch.no_grad():
        module.train()(torch.ones(2, 3))
    assert not GRAPHS
    module(torch.ones(2, 3))
    leave_uncompiled(module)
    module(torch.ones(4, 3))
    assert len(GRAPHS) == 1


def test_more_shapes_run_uncompiled_and_are_told_once(said):
    module = compiled(Traced())
    for _ in range(2):
        for count in range(1, MOST_SHAPES + 4):
            x = torch.randn(count, 3)
            torch.testing.assert_close(module(x), module.inner(x))
    assert len(GRAPHS) == MOST_SHAPES
    told = [line for line in said if 'run uncompiled' in line]
    assert len(told) == 1
    assert f'inputs [{MOST_SHAPES + 1}, 3]' in told[0]


def test_one_graph_may_be_asked_for_all_shapes(said):
    module = compiled(Traced(), dynamic=True)
    module(torch.randn(5, 3))
    of_first = len(GRAPHS)
    for count in range(6, MOST_SHAPES + 9):
        module(torch.randn(count, 3))
    assert len(GRAPHS) == of_first > 0
    assert len(said) == 1, 'that it is compiled'


@pytest.mark.parametrize('kind', ['forward_pre_hook', 'forward_hook', 'full_backward_hook'])
@pytest.mark.parametrize('of', ['module', 'inner'])
def test_hooks_that_come_later_are_called(kind, of):
    module, x = compiled(Traced()), torch.ones(2, 3)
    given = x.clone().requires_grad_()
    module(given)
    calls = []

    def changes(*given):
        calls.append(1)
        if kind == 'full_backward_hook':
            return tuple(None if g is None else 2 * g for g in given[1])
        return (2 * given[1][0],) if kind == 'forward_pre_hook' else 2 * given[2]

    owner = module if of == 'module' else module.inner
    handle = getattr(owner, f'register_{kind}')(changes)
    y = module(given)
    y.sum().backward()
    assert len(calls) == 1
    handle.remove()
    plain = module._call_impl(x)
    twice = {'forward_hook': 2 * plain, 'forward_pre_hook': module._call_impl(2 * x)}
    torch.testing.assert_close(y, twice.get(kind, plain))
    torch.testing.assert_close(module(given), plain)


def test_what_changes_in_every_step_is_given_up(said):
    module, x, calls = compiled(Traced()), torch.ones(2, 3), []
    module.inner.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(9):
        torch.testing.assert_close(module(x), module.inner.forward(x))
    assert len(calls) == 9
    assert len(GRAPHS) == 2 + compiled_backbone.MOST_AGAIN
    (told,) = [line for line in said if 'not compiled' in line]
    assert 'changes from step to step' in told


def test_every_run_of_a_process_is_compiled():
    for _ in range(12):
        compiled(Traced())(torch.ones(2, 3))
    assert len(GRAPHS) == 12


def test_errors_of_a_compiler_may_be_of_any_type(said):
    def asserts(*_):
        raise AssertionError

    module, x = compiled(Traced()), torch.ones(2, 3)
    module._compiled_call_impl.compiled = asserts
    torch.testing.assert_close(module(x), module.inner(x))
    assert any('AssertionError: without a word' in line for line in said)


def test_copies_and_pickles_go_without():
    module = compiled(Traced())
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other._compiled_call_impl is None
        other(torch.ones(2, 3))
    assert not GRAPHS
    assert isinstance(module._compiled_call_impl, compiled_backbone._CompiledCall)
