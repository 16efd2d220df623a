"""A run whose frozen base is in int8: scored in full precision, trained, resumed, merged back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from cdra_mm import CDRAHook
from cdra_mm.core import CheckpointError, ConfigError, digests_of, plan_of
from cdra_mm.core.adapters.small_base import quantized_names
from cdra_mm.core.artifacts.files import read_adapter
from cdra_mm.mm.backbone import PREFIX
from cdra_mm.mm.checkpoints.record import read_record
from cdra_mm.mm.checkpoints.small_base import make_small
from cdra_mm.mm.export.merging import merge_checkpoint
from tests.reference import int8 as reference

from . import toy
from .test_life_cycle import assert_same, weights

SMALL = dict(base_dtype='int8')
AVERAGED = dict(custom_hooks=[dict(type='EMAHook', momentum=0.1)])
MATRICES = 12  # qkv, proj and two of an FFN in each of three layers


def config(folder, **options):
    cdra = {**SMALL, **options.pop('cdra', {})}
    return toy.config(folder, cdra=cdra, **{**AVERAGED, **options})


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('int8')
    return folder, toy.train(config(folder))


@pytest.fixture(scope='module')
def plain(run):
    """The same run in full precision."""
    folder, _ = run
    return toy.train(config(folder, work_dir=str(folder / 'plain'), cdra=dict(base_dtype=None)))


def load(path):
    return torch.load(path, weights_only=False)


def base_of(folder):
    return torch.load(toy.base_file(folder))['state_dict']


def test_every_matrix_is_what_int8_stands_for_of_the_base_file(run):
    folder, runner = run
    backbone, base = runner.model.backbone, base_of(folder)
    names = quantized_names(backbone)
    assert len(names) == MATRICES
    own = dict(backbone.named_parameters())
    for name in names:
        assert torch.equal(own[name].whole(), reference.quantized(base[name]))
    frozen = {n for n, p in own.items() if not p.requires_grad and n in base} - set(names)
    assert frozen and all(torch.equal(own[name], base[name]) for name in frozen)


def test_scores_and_plan_are_those_of_the_base_in_full_precision(run, plain):
    _, runner = run
    assert plan_of(runner.model.backbone) == plan_of(plain.model.backbone)
    trained = {n: p for n, p in runner.model.named_parameters() if p.requires_grad}
    other = dict(plain.model.named_parameters())
    assert any(not torch.equal(p, other[name]) for name, p in trained.items())


def test_checkpoint_holds_what_one_in_full_precision_holds_and_its_table(run, plain):
    folder, _ = run
    found, right = (load(folder / name / 'iter_8.pth') for name in ('run', 'plain'))
    for part in ('state_dict', 'ema_state_dict'):
        assert found[part].keys() == right[part].keys()
        assert all(type(value) is torch.Tensor for value in found[part].values())
    record, other = (read_record(c['state_dict'], PREFIX) for c in (found, right))
    assert record.digests == other.digests
    assert record.settings == {**other.settings, **SMALL}
    base = base_of(folder)
    assert digests_of({name: base[name] for name in record.digests}) == record.digests


@pytest.mark.parametrize('start', [4])
def test_resumed_run_ends_as_an_uninterrupted_one(run, start):
    folder, runner = run
    path, there = str(folder / f'run/iter_{start}.pth'), str(folder / 'resumed')
    resumed = toy.train(config(folder, resume=True, load_from=path, work_dir=there))
    assert_same(weights(resumed), weights(runner))
    ends = [load(folder / name / 'iter_8.pth') for name in ('run', 'resumed')]
    assert_same(ends[0]['ema_state_dict'], ends[1]['ema_state_dict'])
    assert len(quantized_names(resumed.model.backbone)) == MATRICES


def test_a_test_without_our_hook_is_of_the_base_that_was_trained_on(run):
    folder, runner = run
    cfg = Config.fromfile(next((folder / 'run').glob('*.py')))
    cfg.load_from, cfg.work_dir = str(folder / 'run/iter_8.pth'), str(folder / 'tested')
    cfg.default_hooks.pop('cdra')
    cfg.custom_hooks = []
    tested = Runner.from_cfg(cfg)
    tested.test()
    assert quantized_names(tested.model.backbone) == quantized_names(runner.model.backbone)
    found, right = weights(tested), weights(runner)
    for name in quantized_names(tested.model):
        assert torch.equal(found[name].codes, right[name].codes)
    saved = load(folder / 'run/iter_8.pth')['state_dict']
    held = found.keys() & saved.keys() - {'backbone.cdra_plan'}
    assert any('.cdra.' in name for name in held)
    assert all(torch.equal(found[name], saved[name]) for name in held)


def test_merged_checkpoint_is_that_of_the_base_in_full_precision(run):
    folder, runner = run
    path = str(folder / 'run/iter_8.pth')
    loaded = load(path)
    record = read_record(loaded['state_dict'], PREFIX)
    assert record.settings['base_dtype'] == 'int8'
    settings = {key: value for key, value in record.settings.items() if key != 'base_dtype'}
    never = replace(record, settings=settings).to_state()
    loaded['state_dict'].update({PREFIX + key: value for key, value in never.items()})
    torch.save(loaded, folder / 'never.pth')
    merged = merge_checkpoint(runner.cfg, path)
    right = merge_checkpoint(runner.cfg, str(folder / 'never.pth')).checkpoint['state_dict']
    found, base = merged.checkpoint['state_dict'], base_of(folder)
    assert_same(found, right)
    names = quantized_names(runner.model.backbone)
    same = torch.cat([(found[PREFIX + name] == base[name]).flatten() for name in names])
    assert 0.2 < float(same.float().mean()) < 0.99  # outside of blocks, bit for bit


def test_adapter_file_relies_on_the_base_in_full_precision(run):
    folder, _ = run
    base = base_of(folder)
    digests = read_adapter(folder / 'run/cdra_adapter.safetensors').digests
    matrices = [name for name in digests if name.endswith('ffn.layers.1.weight')]
    assert matrices
    right = digests_of({name: base[name] for name in matrices})
    assert {name: digests[name] for name in matrices} == right


def test_checkpoint_is_not_gone_on_from_in_another_precision(run):
    folder, _ = run
    path = str(folder / 'run/iter_4.pth')
    there = dict(resume=True, load_from=path, work_dir=str(folder / 'other'))
    with pytest.raises(CheckpointError, match="made with base_dtype='int8', the config leaves it"):
        toy.train(config(folder, cdra=dict(base_dtype=None), **there))


def test_checkpoint_of_a_precision_to_come_is_refused(run):
    folder, runner = run
    state = load(folder / 'run/iter_4.pth')['state_dict']
    record = replace(read_record(state, PREFIX), settings={'base_dtype': 'int2'})
    with pytest.raises(CheckpointError, match="base_dtype='int2': this release knows int8"):
        make_small(runner.model.backbone, record)


def test_a_base_that_no_file_brings_back_is_refused_before_it_is_scored(tmp_path):
    cfg = config(tmp_path)
    cfg.model.backbone.init_cfg = None
    with pytest.raises(ConfigError, match=r"base_dtype='int8' needs a file .*\(none is named\)"):
        toy.train(cfg)
    assert not list((tmp_path / 'run').glob('*plan*'))


def test_a_base_in_half_precision_is_refused_before_it_is_scored(tmp_path):
    from .test_backbones_runs import config as timm_config

    cfg = timm_config(tmp_path, cdra=SMALL)
    cfg.model.backbone.dtype = 'bfloat16'
    with pytest.raises(ConfigError, match='quantises a base in float32, .* is bfloat16'):
        toy.train(cfg)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(base_dtype='int4'), r"base_dtype='int4': expected None \(as it is loaded\) or one"),
        (dict(base_dtype=8), 'base_dtype=8: expected'),
        (dict(method=dict(type='full'), **SMALL), "the method 'full' trains the whole backbone"),
        (dict(save_base=True, **SMALL), "base_dtype='int8', save_base=True: the run has no base"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_when_the_hook_is_built(settings, message):
    with pytest.raises(ConfigError, match=message):
        CDRAHook(**settings)


def test_it_is_a_setting_of_the_record_only_where_it_is_given():
    assert 'base_dtype' not in CDRAHook().settings  # as in records from before there was one
    assert CDRAHook(**SMALL).settings['base_dtype'] == 'int8'
