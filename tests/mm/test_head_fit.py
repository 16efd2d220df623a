"""The head is fitted on frozen features before anything is scored."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner import Runner
from mmseg.models import EncoderDecoder
from mmseg.registry import MODELS

from cdra_mm import CDRAHook
from cdra_mm.core import ConfigError, DataError, ScoreError, base_state
from cdra_mm.mm.host.model_patches import with_forward
from cdra_mm.mm.planning import head_fit, held_batch
from cdra_mm.mm.planning.head_fit import fit_head

from . import toy

SHORT = dict(type='IterBasedTrainLoop', max_iters=1, val_interval=100)


def built(folder, task='seg', **options):
    """A run before its training, its weights loaded, and its backbone."""
    return built_of(toy.config(folder, task, **options))


def built_of(cfg):
    cfg.model.backbone.drop_path_rate = 0.3  # which features do not see
    runner = Runner.from_cfg(cfg)
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner._init_model_weights()
    return runner, runner.model.backbone


def head_of(model):
    own = {f'backbone.{name}' for name in model.backbone.state_dict()}
    return {k: v.clone() for k, v in model.state_dict().items() if k not in own}


@pytest.mark.parametrize('task', ['seg', 'cls'])
def test_it_is_a_training_of_the_head_on_the_frozen_backbone(tmp_path, task):
    """Step by step as an ordinary loop over the same batches does it, without features held."""
    runner, backbone = built(tmp_path, task)
    twin, _ = built(tmp_path, task)
    before = base_state(backbone)
    before = {name: value.clone() for name, value in before.items()}
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    fit_head(runner, backbone, 9, seed=2)
    assert torch.equal(torch.rand(1), drawn)  # what training draws later is not touched
    assert all(torch.equal(value, before[name]) for name, value in base_state(backbone).items())
    assert all(p.requires_grad and p.grad is None for p in runner.model.parameters())

    model = twin.model
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2)).tolist()
    loader = twin.train_dataloader if hasattr(twin.train_dataloader, 'dataset') else None
    dataset = (loader or twin.train_loop.dataloader).dataset
    collate = twin.train_loop.dataloader.collate_fn
    head = [p for n, p in model.named_parameters() if not n.startswith('backbone.')]
    optimizer = torch.optim.AdamW(head, lr=1e-2)
    generator = torch.Generator().manual_seed(2)
    model.train()
    model.backbone.eval()
    turns = list(range(6))
    for step in range(9):
        if step == 6:  # held by now
            turns = torch.randperm(6, generator=generator).tolist()
        at = turns[step % 6] * 4
        data = model.data_preprocessor(collate([dataset[i] for i in order[at : at + 4]]), True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    expected = head_of(model)
    for name, value in head_of(runner.model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_what_there_is_no_room_for_is_not_held(tmp_path, monkeypatch):
    runner, backbone = built(tmp_path)
    calls = []
    plain = type(backbone).forward
    monkeypatch.setattr(
        type(backbone), 'forward', lambda self, x: calls.append(len(x)) or plain(self, x)
    )
    fit_head(runner, backbone, 20, seed=0)
    assert calls == [4] * 6  # each image once
    calls.clear()
    monkeypatch.setattr(head_fit, 'ROOM', 1)
    fit_head(runner, backbone, 20, seed=0)
    assert calls == [4]  # one batch at least
    monkeypatch.undo()
    for samples, batches in ((8, 2), (3, 1)):
        with monkeypatch.context() as patch:
            calls.clear()
            patch.setattr(
                type(backbone), 'forward', lambda self, x: calls.append(len(x)) or plain(self, x)
            )
            fit_head(runner, backbone, 20, seed=0, num_samples=samples)
        assert calls == [4] * batches


def test_scores_are_those_of_the_fitted_head_and_training_goes_on_from_it(tmp_path):
    runner = toy.train(
        toy.config(tmp_path, cdra=dict(head_iters=30, method=dict(type='linear')), train_cfg=SHORT)
    )
    fresh, backbone = built(tmp_path)
    fit_head(fresh, backbone, 30, seed=0, num_samples=8)
    for name, value in head_of(fresh.model).items():  # one step of training moves it by 0.01
        now = head_of(runner.model)[name]
        if value.dtype.is_floating_point and 'running' not in name:
            assert (now - value).abs().max() < 0.02, name
    plain, _ = built(tmp_path)
    far = max(
        float((value - head_of(plain.model)[name]).abs().max())
        for name, value in head_of(fresh.model).items()
        if value.dtype.is_floating_point
    )
    assert far > 0.1


def test_a_run_goes_on_only_with_the_same_head_iters(tmp_path):
    toy.train(toy.config(tmp_path, cdra=dict(head_iters=5), train_cfg=SHORT))
    longer = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=100)
    with pytest.raises(Exception, match='head_iters=5, the config says 0'):
        toy.train(toy.config(tmp_path, train_cfg=longer, resume=True))
    runner = toy.train(toy.config(tmp_path, cdra=dict(head_iters=5), train_cfg=longer, resume=True))
    assert runner.iter == 2


def recorded(run):
    return next(hook for hook in run.hooks if isinstance(hook, CDRAHook)).record.settings


def fitted(folder, **cdra):
    """The iterations that a run with these settings fits its head."""
    folder.mkdir()
    return recorded(toy.train(toy.config(folder, cdra=cdra, train_cfg=SHORT))).get('head_iters', 0)


@pytest.mark.parametrize(
    ('rate', 'iters'), [(1e-2, 5), (1e-3, 50), (1e-5, 100), (0.04, 1), (0.2, 0)]
)
def test_by_default_it_moves_a_weight_by_about_a_twentieth(tmp_path, rate, iters):
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=rate))
    runner, backbone = built(tmp_path, optim_wrapper=wrapper)
    before = head_of(runner.model)
    assert fit_head(runner, backbone, None, seed=0) == iters
    moved = [
        (value - before[name]).abs().max()
        for name, value in head_of(runner.model).items()
        if 'running' not in name and value.dtype.is_floating_point
    ]
    if rate > 1e-4:
        assert (0.02 < max(moved) < 0.06) if iters else max(moved) == 0


def test_by_default_it_is_fitted_where_the_mean_gradient_decides(tmp_path):
    scores = dict(head_iters=None, allocation='scores')
    assert fitted(tmp_path / 'scores', **scores) == 0
    assert fitted(tmp_path / 'lora', head_iters=None, method=dict(type='lora')) == 0
    assert fitted(tmp_path / 'given', head_iters=0) == 0
    assert fitted(tmp_path / 'default', head_iters=None) == 5
    plan = str(tmp_path / 'default' / 'run' / 'cdra_plan.json')
    assert fitted(tmp_path / 'plan', head_iters=None, plan=plan) == 0
    assert fitted(tmp_path / 'start', head_iters=None, plan=plan, start='gradient') == 5


def test_what_the_default_came_to_is_gone_on_with(tmp_path):
    """A run of before it was the default goes on without, one of today with, and neither turns."""
    longer = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=100)
    for name, begun, wrong in (('with', None, 0), ('without', 0, 5)):
        folder = tmp_path / name
        folder.mkdir()
        toy.train(toy.config(folder, cdra=dict(head_iters=begun), train_cfg=SHORT))
        made = f'made with head_iters={5 if begun is None else 0}, the config says {wrong}'
        with pytest.raises(Exception, match=made):
            toy.train(
                toy.config(folder, cdra=dict(head_iters=wrong), train_cfg=longer, resume=True)
            )
        cfg = toy.config(folder, cdra=dict(head_iters=None), train_cfg=longer, resume=True)
        assert toy.train(cfg).iter == 2


def without_fit(runner, backbone, caplog, why):
    """By default such a run goes on with the head as it was, and says why."""
    before = head_of(runner.model)
    caplog.clear()
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        assert fit_head(runner, backbone, None, seed=0) == 0
    finally:
        logger.removeHandler(caplog.handler)
    assert all(torch.equal(value, before[name]) for name, value in head_of(runner.model).items())
    assert all(p.grad is None for p in runner.model.parameters())
    assert why in caplog.text


def test_by_default_nothing_stops_a_run_that_would_train_without(tmp_path, caplog, monkeypatch):
    several = dict(constructor='OneForHeadAndRest', type='OptimWrapper', optimizer=dict(type='SGD'))
    runner, backbone = built(tmp_path, optim_wrapper=several)
    why = 'the head is not fitted first (optim_wrapper is a OptimWrapperDict: it is fitted by one)'
    without_fit(runner, backbone, caplog, why)
    runner.model.decode_head.requires_grad_(False)
    without_fit(runner, backbone, caplog, '')

    runner, backbone = built(tmp_path, optim_wrapper=dict(several, constructor='OfBackboneAlone'))
    without_fit(runner, backbone, caplog, '(ValueError: optimizer got an empty parameter list)')

    runner, backbone = built(tmp_path)
    plain, calls = type(runner.model).loss, []

    def loss(self, *given):
        calls.append(len(calls))
        if len(calls) > 2:  # two steps have moved it by then
            raise RuntimeError('of the head')
        return plain(self, *given)

    monkeypatch.setattr(type(runner.model), 'loss', loss)
    without_fit(runner, backbone, caplog, '(RuntimeError: of the head); head_iters=0 leaves it')
    calls.clear()
    with pytest.raises(RuntimeError, match='of the head'):
        fit_head(runner, backbone, 5, seed=0)

    def not_finite(self, *given):
        return {name: value * float('nan') for name, value in plain(self, *given).items()}

    monkeypatch.setattr(type(runner.model), 'loss', not_finite)
    without_fit(runner, backbone, caplog, 'the loss of the head on frozen features is nan')
    monkeypatch.undo()

    data = runner.train_loop.dataloader.dataset
    monkeypatch.setattr(type(data), '__len__', lambda self: 0)
    with pytest.raises(DataError, match='the training data set is empty'):
        fit_head(runner, backbone, None, seed=0)


def test_steps_are_counted_where_gradients_are_accumulated(tmp_path):
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-2))
    runner, backbone = built(tmp_path, optim_wrapper=dict(wrapper, accumulative_counts=4))
    assert fit_head(runner, backbone, None, seed=0) == 20


@pytest.mark.parametrize('iters', [None, 5])
def test_weights_that_are_not_finite_are_named_before_the_head_is_fitted(tmp_path, iters):
    cfg = toy.config(tmp_path, cdra=dict(head_iters=iters))
    runner, backbone = built_of(cfg)
    hook = next(hook for hook in runner.hooks if isinstance(hook, CDRAHook))
    backbone.layers[0].attn.qkv.weight.data[0, 0] = float('nan')
    with pytest.raises(ScoreError, match='layers.0.attn.qkv.weight'):
        hook.adaptation.begin(runner, backbone)


def never_held(_, backbone):
    plain = backbone.forward
    return with_forward(backbone, torch.no_grad()(lambda *given: plain(*given)))


@pytest.mark.parametrize('what', ['in place', 'looked into', 'appended to'])
def test_features_that_a_loss_changes_or_hooks_take_are_made_again(tmp_path, monkeypatch, what):
    seen = {}
    for held in (True, False):
        runner, backbone = built(tmp_path)
        model, plain = runner.model, type(runner.model).extract_feat

        def extract_feat(self, inputs, plain=plain):
            features = plain(self, inputs)
            if what == 'in place':
                features[-1].mul_(3).sin_()  # which no norm makes good
            return features if what != 'looked into' else (self.inner * features[-1],)

        if what == 'looked into':
            last = backbone.layers[-1]
            last.register_forward_hook(
                lambda _, __, out, m=model: m.__dict__.update(inner=out.mean().detach())
            )
        if what == 'appended to':
            forward = backbone.forward
            backbone.forward = lambda x, forward=forward: list(forward(x))

            def extract_feat(self, inputs, plain=plain):
                features = plain(self, inputs)
                features.append((features[-1] * 3).sin())
                return features

        monkeypatch.setattr(type(model), 'extract_feat', extract_feat)
        if not held:
            monkeypatch.setattr(held_batch.HeldBatch, 'frozen', never_held)
        fit_head(runner, backbone, 9, seed=0)
        monkeypatch.undo()
        seen[held] = head_of(runner.model)
    for name, value in seen[True].items():
        torch.testing.assert_close(value, seen[False][name], rtol=1e-5, atol=1e-7, msg=name)


def test_a_loss_that_is_not_finite_names_the_iteration(tmp_path):
    optimizer = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1e30))
    with pytest.raises(DataError, match=r'loss of the head on frozen features is (nan|inf) at it'):
        toy.train(toy.config(tmp_path, cdra=dict(head_iters=20), optim_wrapper=optimizer))


@MODELS.register_module(force=True)
class TwoDates(EncoderDecoder):
    """Two images in six channels through one backbone, called twice."""

    def extract_feat(self, inputs):
        pair = [self.backbone(part) for part in inputs.chunk(2, 1)]
        return tuple(torch.cat(features, 1) for features in zip(*pair, strict=True))

    def loss(self, inputs, data_samples):
        return super().loss(torch.cat([inputs, inputs.flip(-1)], 1), data_samples)


def test_a_loss_that_runs_the_backbone_twice_is_given_the_features_of_both(tmp_path, monkeypatch):
    cfg = toy.config(tmp_path)
    cfg.model.type, cfg.model.decode_head.in_channels = 'TwoDates', 64
    cfg.train_dataloader.dataset.size = 4
    runner, backbone = built_of(cfg)
    model, calls, plain = copy.deepcopy(runner.model), [], type(backbone).forward
    monkeypatch.setattr(
        type(backbone), 'forward', lambda self, x: calls.append(len(x)) or plain(self, x)
    )
    fit_head(runner, backbone, 3, seed=0)
    assert calls == [4, 4]  # once for each of the two, and then never again

    order = torch.randperm(4, generator=torch.Generator().manual_seed(0)).tolist()
    loader = runner.train_loop.dataloader
    data = loader.collate_fn([loader.dataset[i] for i in order])
    optimizer = torch.optim.AdamW(model.decode_head.parameters(), lr=1e-2)
    model.train()
    model.backbone.eval()
    for _ in range(3):
        batch = model.data_preprocessor(copy.deepcopy(data), True)
        loss, _ = model.parse_losses(model(**batch, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, value in head_of(runner.model).items():
        torch.testing.assert_close(value, head_of(model)[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_negative_count_is_refused():
    with pytest.raises(ConfigError, match='head_iters=-1: expected a count of at least 0'):
        CDRAHook(head_iters=-1)


def test_fewer_images_than_a_batch_fill_it(tmp_path):
    """As a sampler without end does: norms over a batch of one pooled value have no variance."""
    runner, backbone = built(tmp_path)
    runner.train_dataloader.dataset.data_list[1:] = []
    assert len(runner.train_dataloader.dataset) == 1
    seen = []
    runner.model.decode_head.conv_seg.register_forward_pre_hook(
        lambda _, given: seen.append(len(given[0]))
    )
    fit_head(runner, backbone, 2, seed=2)
    assert seen == [4, 4]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class OfBackboneAlone:
    def __init__(self, *_, **__):
        pass

    def __call__(self, model):
        trained = [p for p in model.backbone.parameters() if p.requires_grad]
        return OptimWrapper(torch.optim.SGD(trained, lr=1e-3))


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class OneForHeadAndRest:
    def __init__(self, *_, **__):
        pass

    def __call__(self, model):
        head = model.head if hasattr(model, 'head') else model.decode_head
        rates = [torch.optim.SGD([p], lr=1e-3) for p in head.parameters()][:2]
        return OptimWrapperDict(**{f'of_{n}': OptimWrapper(each) for n, each in enumerate(rates)})


def test_several_optimizers_are_refused(tmp_path):
    several = dict(constructor='OneForHeadAndRest', type='OptimWrapper', optimizer=dict(type='SGD'))
    cfg = toy.config(tmp_path, cdra=dict(head_iters=2), optim_wrapper=several)
    with pytest.raises(ConfigError, match='a OptimWrapperDict: head_iters needs one; leave it out'):
        toy.train(cfg)


def test_several_optimizers_are_refused_by_a_search_too(tmp_path):
    several = dict(constructor='OneForHeadAndRest', type='OptimWrapper', optimizer=dict(type='SGD'))
    sizes = dict(prompt_dims=[1, 2], lora_dims=[1, 2], adapter_dims=[1, 2])
    cdra = dict(method=dict(type='noah', budget_percent=90, **sizes))
    cfg = toy.config(tmp_path, 'cls', cdra=cdra, optim_wrapper=several)
    cfg.default_hooks.cdra.pop('budget_percent')
    with pytest.raises(ConfigError, match='a OptimWrapperDict: a supernet is trained by one opt'):
        toy.train(cfg)
