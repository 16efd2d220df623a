"""From a config file to a runnable one: settings, reading, inputs."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.runner.checkpoint import CheckpointLoader, _load_checkpoint_with_prefix

from cdra_mm.core import CheckpointError, ConfigError, DataError
from cdra_mm.mm.inputs import check_inputs, check_weight_file, named_downloads
from cdra_mm.mm.launch import (
    load_config,
    plain_config,
    prepare_config,
    require_amp_device,
    set_work_dir,
)

SEG = dict(
    default_scope='mmseg',
    model=dict(type='EncoderDecoder', backbone=dict(type='mmpretrain.VisionTransformer')),
)
# What stands beside a loader: a stage is given whole or not at all.
BESIDE = dict(
    train_dataloader=dict(train_cfg={}, optim_wrapper=dict(type='OptimWrapper')),
    test_dataloader=dict(test_cfg={}, test_evaluator=dict(type='IoUMetric')),
)


def config(**fields):
    for name in BESIDE.keys() & fields.keys():
        fields = {**BESIDE[name], **fields}
    return Config(copy.deepcopy({**SEG, **fields}))


def loader(**dataset):
    return dict(batch_size=1, dataset=dict(type='BaseSegDataset', **dataset))


# Settings.


def test_block_becomes_a_hook_beside_the_others():
    cfg = prepare_config(
        config(cdra=dict(gamma=0.02), default_hooks=dict(timer=dict(type='IterTimerHook')))
    )
    assert 'cdra' not in cfg
    assert cfg.default_hooks.cdra == dict(type='cdra_mm.CDRAHook', gamma=0.02)
    assert cfg.default_hooks.timer.type == 'IterTimerHook'


def test_block_and_hook_are_joined_when_they_agree():
    hook = dict(type='cdra_mm.CDRAHook', budget_percent=1.0)
    cfg = prepare_config(
        config(cdra=dict(budget_percent=1.0, seed=4), default_hooks=dict(cdra=hook))
    )
    assert cfg.default_hooks.cdra == dict(type='cdra_mm.CDRAHook', budget_percent=1.0, seed=4)


def test_block_and_hook_with_two_budgets_are_refused():
    hook = dict(type='cdra_mm.CDRAHook', budget_percent=1.0)
    with pytest.raises(ConfigError, match='give only one'):
        prepare_config(config(cdra=dict(gamma=0.1), default_hooks=dict(cdra=hook)))


def test_none_takes_the_hook_of_a_base_config_out():
    cfg = prepare_config(config(default_hooks=dict(cdra=None)))
    assert 'cdra' not in cfg.default_hooks


@pytest.mark.parametrize('hooks', [dict(), dict(default_hooks=None)])
def test_config_without_the_method_stays_as_it_is(hooks):
    cfg = config(**hooks)
    before = cfg.to_dict()
    assert prepare_config(cfg).to_dict() == before


def test_hook_in_custom_hooks_is_checked_and_not_doubled():
    custom = [dict(type='cdra_mm.CDRAHook', num_sample=4)]
    with pytest.raises(ConfigError, match="did you mean 'num_samples'"):
        prepare_config(config(custom_hooks=custom))
    custom[0] = dict(type='cdra_mm.CDRAHook', num_samples=4, priority='VERY_HIGH')
    prepare_config(config(custom_hooks=custom))
    with pytest.raises(ConfigError, match='keep one'):
        prepare_config(config(custom_hooks=custom, cdra=dict(num_samples=4)))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(gama=0.1), "did you mean 'gamma'"),
        (dict(method=dict(type='cdra', bta=3)), "did you mean 'beta'"),
        (dict(method='cdra'), "dict\\(type='cdra'\\)"),
        (dict(gamma=2.0), 'fraction in'),
        (dict(num_samples=0), 'at least 1'),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_built(settings, message):
    with pytest.raises(ConfigError, match=message):
        prepare_config(config(cdra=settings))


def test_class_as_type_counts_as_the_hook():
    from cdra_mm import CDRAHook

    with pytest.raises(ConfigError, match="did you mean 'gamma'"):
        prepare_config(config(custom_hooks=[dict(type=CDRAHook, gama=0.1)]))


def test_plain_config_holds_nothing_of_ours():
    wrapped = dict(type='cdra_mm.CDRABackbone', backbone=dict(type='mmpretrain.VisionTransformer'))
    cfg = config(
        model=dict(type='EncoderDecoder', backbone=wrapped),
        cdra=dict(gamma=0.1),
        default_hooks=dict(cdra=dict(type='cdra_mm.CDRAHook'), timer=dict(type='IterTimerHook')),
        custom_hooks=[dict(type='CDRAHook'), dict(type='EMAHook')],
        custom_imports=dict(imports=['cdra_mm.mm.weights', 'other']),
    )
    before = cfg.to_dict()
    plain = plain_config(cfg)
    assert 'cdra' not in plain.pretty_text.lower()
    assert plain.model.backbone.type == 'mmpretrain.VisionTransformer'
    assert [hook.type for hook in plain.custom_hooks] == ['EMAHook']
    assert plain.custom_imports['imports'] == ['other'] and list(plain.default_hooks) == ['timer']
    assert cfg.to_dict() == before


# Reading configs.


def test_config_of_installed_mmseg_resolves(tmp_path):
    path = tmp_path / 'stock.py'
    path.write_text("_base_ = ['mmseg::_base_/default_runtime.py']\ncdra = dict(gamma=0.1)\n")
    assert load_config(path).default_scope == 'mmseg'


def test_overrides_change_nested_settings(tmp_path):
    path = tmp_path / 'a.py'
    path.write_text('a = dict(b=1, c=[dict(d=2)])\n')
    cfg = load_config(path, ['a.b=(1,2)', 'a.c.0.d=None', 'e.f=0.5'])
    assert cfg.a == dict(b=(1, 2), c=[dict(d=None)]) and cfg.e.f == 0.5


@pytest.mark.parametrize(
    ('text', 'message'),
    [('x = y\n', 'NameError'), ('x = dict(\n', 'SyntaxError'),
     ("_base_ = 'none.py'\n", 'none.py')],
)  # fmt: skip
def test_config_that_cannot_be_read_is_named(text, message, tmp_path):
    path = tmp_path / 'bad.py'
    path.write_text(text)
    with pytest.raises(ConfigError, match=f'bad.py: .*{message}'):
        load_config(path)


def test_work_dir_is_the_option_the_configs_or_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for own, option, expected in (
        (None, None, './work_dirs/name'), ('own', None, 'own'), ('own', 'option', 'option'),
    ):  # fmt: skip
        cfg = config(work_dir=own)
        set_work_dir(cfg, 'configs/name.py', option)
        assert cfg.work_dir == expected and (tmp_path / expected).is_dir()


@pytest.mark.skipif(torch.cuda.is_available(), reason='a GPU can train in mixed precision')
def test_mixed_precision_of_the_config_needs_a_gpu():
    require_amp_device(config())
    with pytest.raises(ConfigError, match='GPU'):
        require_amp_device(config(optim_wrapper=dict(type='AmpOptimWrapper')))


# Inputs.


def test_every_folder_and_list_of_nested_data_sets_is_looked_for(tmp_path):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'list.txt').touch()
    parts = dict(data_root=str(tmp_path), data_prefix=dict(img_path='images'))
    good = dict(type='BaseSegDataset', ann_file='list.txt', **parts)
    cfg = config(train_dataloader=dict(dataset=dict(type='ConcatDataset', datasets=[good, good])))
    check_inputs(cfg, 'train')
    cfg.train_dataloader.dataset.datasets[1].ann_file = 'other.txt'
    with pytest.raises(DataError, match=r'other.txt \(train_dataloader.dataset.datasets.1\)'):
        check_inputs(cfg, 'train')


@pytest.mark.parametrize(
    ('root', 'command'),
    [
        ('data/ade/ADEChallengeData2016', 'cdra data prepare ade20k data/ade'),
        ('x/VOCdevkit/VOC2012', 'cdra data prepare voc x'),
        ('VOCdevkit/VOC2012/', 'cdra data prepare voc .'),
        ('data/camvid', 'cdra data prepare camvid data/camvid'),
    ],
)
def test_missing_data_set_that_is_known_names_its_command(root, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = config(test_dataloader=loader(data_root=root, data_prefix=dict(img_path='images')))
    with pytest.raises(DataError) as caught:
        check_inputs(cfg, 'test')
    assert str(caught.value).endswith(command) and root.rstrip('/') in str(caught.value)


@pytest.mark.parametrize('root', ['data/mine/images', 'data/dtd', 'data/mine/img_dir'])
def test_missing_folder_with_a_common_name_is_not_taken_for_a_known_data_set(
    root, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    cfg = config(test_dataloader=loader(data_root=root))
    with pytest.raises(DataError, match='set test_dataloader.dataset.data_root to where they are'):
        check_inputs(cfg, 'test')


def test_part_of_a_data_set_that_is_missing_is_left_to_the_check(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data/VOCdevkit/VOC2012/JPEGImages').mkdir(parents=True)
    parts = dict(img_path='JPEGImages', seg_map_path='SegmentationClassAug')
    cfg = config(test_dataloader=loader(data_root='data/VOCdevkit/VOC2012', data_prefix=parts))
    with pytest.raises(DataError, match='Aug .* missing with cdra data prepare voc data --check'):
        check_inputs(cfg, 'test')


def test_command_that_the_config_states_comes_first(tmp_path):
    root = str(tmp_path / 'gone')
    for stated, told in ('make data', 'make data'), (['demo', root], 'cdra data prepare demo '):
        cfg = config(test_dataloader=loader(data_root=root), prepare_data=stated)
        with pytest.raises(DataError, match=f'gone .*make it with {told}'):
            check_inputs(cfg, 'test')


def test_other_stages_data_are_not_looked_for(tmp_path):
    here = loader(data_root=str(tmp_path))
    cfg = config(train_dataloader=here, test_dataloader=loader(data_root='nowhere'))
    check_inputs(cfg, 'train')
    with pytest.raises(DataError):
        check_inputs(cfg, 'test')


def test_data_set_that_downloads_itself_is_left_alone():
    prepare_config(config(default_scope='mmpretrain'))
    cfg = config(default_scope='mmpretrain', test_dataloader=loader(data_root='nowhere'))
    cfg.test_dataloader.dataset.type = 'CIFAR10'
    check_inputs(cfg, 'test')
    cfg.test_dataloader.dataset.download = False
    with pytest.raises(DataError, match='nowhere'):
        check_inputs(cfg, 'test')


def test_addresses_are_left_to_the_downloader(tmp_path):
    cfg = config(
        train_dataloader=loader(data_root='s3://bucket/data', data_prefix=dict(img_path='a')),
        load_from='https://somewhere/a.pth',
    )
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='torchvision://resnet50')
    check_inputs(cfg, 'train')


def test_config_without_a_stage_or_with_half_of_it_is_refused():
    with pytest.raises(ConfigError, match='no test_cfg: it is needed to test'):
        check_inputs(config(), 'test')
    with pytest.raises(ConfigError, match='has test_cfg, but no test_dataloader and no test_eval'):
        check_inputs(config(test_cfg={}, train_dataloader=loader()), 'train')


def test_pretrained_weights_are_looked_for_wherever_they_are_named(tmp_path):
    cfg = config(train_dataloader=loader(data_root=str(tmp_path)))
    cfg.model.auxiliary_head = [dict(init_cfg=[dict(type='Pretrained', checkpoint='a.pth')])]
    with pytest.raises(CheckpointError, match='a.pth .model.auxiliary_head.0.init_cfg.0.check'):
        check_inputs(cfg, 'train')
    cfg.model.auxiliary_head = None
    cfg.model.pretrained = 'b.pth'
    with pytest.raises(CheckpointError, match='b.pth .model.pretrained'):
        check_inputs(cfg, 'train')


@pytest.mark.parametrize('legacy', [False, True])
def test_whole_weight_file_passes_and_its_first_half_does_not(legacy, tmp_path):
    path = tmp_path / 'a.pth'
    state = {'state_dict': {'w': torch.randn(100, 100)}}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    check_weight_file(str(path))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match='damaged'):
        check_weight_file(str(path))


def test_cut_off_safetensors_is_refused(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / 'a.safetensors'
    save_file({'w': torch.randn(100)}, path)
    check_weight_file(str(path))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match='truncated'):
        check_weight_file(str(path))


def test_a_download_that_fails_is_named_with_its_place():
    address = 'http://127.0.0.1:9/base.pth'  # nobody listens there
    cfg = config()
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=address)
    message = rf'cannot download {address} \(model\.backbone.*put its path'
    with pytest.raises(CheckpointError, match=message), named_downloads(cfg):
        CheckpointLoader.load_checkpoint(address)


def test_a_prefix_that_no_weight_has_is_named_with_its_file(tmp_path):
    cfg = config()
    path = str(tmp_path / 'a.pth')
    torch.save({'backbone.x': torch.ones(1)}, path)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=path, prefix='foo.')
    message = r"a\.pth \(model\.backbone.*begins with 'foo\.'"
    with pytest.raises(CheckpointError, match=message), named_downloads(cfg):
        _load_checkpoint_with_prefix('foo.', path)
