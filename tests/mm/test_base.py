"""A run and its files are tied to the whole of their base, and follow no stranger."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from mmpretrain.models import VisionTransformer
from torch import nn

from cdra_mm.core import CheckpointError, ConfigError, load_adapter, plan_of
from cdra_mm.core.artifacts.files import read_adapter
from cdra_mm.core.model import digests as fingerprints
from cdra_mm.core.model import tensor_digest
from cdra_mm.mm.backbone import attach_loader, keep_base
from cdra_mm.mm.checkpoints.base_source import named_bases
from cdra_mm.mm.checkpoints.record import base_state, read_record
from cdra_mm.mm.checkpoints.restoring import restore
from cdra_mm.mm.export.formats import FORMATS, Export
from cdra_mm.reading.safetensors_file import read_safetensors
from tests.data.archive_server import Behaviour, serve

from . import toy

RECORD = 'backbone.cdra_record'
STATISTICS = {'stem.running_mean', 'stem.running_var', 'stem.num_batches_tracked'}


@MODELS.register_module(force=True)
class NormedViT(VisionTransformer):
    """A ViT with a batch norm in front and a table, as LeViT, TinyViT and Swin have them."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.stem = nn.BatchNorm2d(3)
        self.register_buffer('table', torch.arange(4))

    def forward(self, images):
        return super().forward(self.stem(images))


def config(folder, **options):
    """A config of a `NormedViT`, whose base file is made first."""
    cfg = toy.config(folder, **options)
    backbone = cfg.model.backbone
    backbone.type = 'NormedViT'
    path = folder / 'normed.pth'
    if not path.exists():
        torch.manual_seed(5)
        base = MODELS.build({k: v for k, v in backbone.items() if k != 'init_cfg'})
        base.init_weights()
        base.stem.running_mean += 0.5
        torch.save({'state_dict': base.state_dict()}, path)
    backbone.init_cfg.checkpoint = str(path)
    return cfg


def base_of(cfg, seed=1):
    """The plain backbone of a config with what its base file brings."""
    torch.manual_seed(seed)
    backbone = attach_loader(MODELS.build(cfg.model.backbone))
    backbone.init_weights()
    backbone.eval()
    return backbone


def features(backbone):
    backbone.eval()
    with torch.no_grad():
        return backbone(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3)))[0]


def record_in(path):
    return read_record(torch.load(path, weights_only=False)['state_dict'], 'backbone.')


def peft_features(cfg, folder, checkpoint):
    peft = pytest.importorskip('peft', reason='peft (extra test) is not installed')
    said = FORMATS['peft'](Export(cfg, str(checkpoint), folder, 'config'))
    model = peft.PeftModel.from_pretrained(base_of(cfg), str(folder))
    return features(model.base_model.model), said


@pytest.fixture(scope='module')
def normed(tmp_path_factory):
    """A finished run whose statistics have changed, with averaged weights."""
    folder = tmp_path_factory.mktemp('normed')
    hooks = [dict(type='EMAHook', momentum=0.1, update_buffers=True)]
    return folder, toy.train(config(folder, custom_hooks=hooks))


def test_changed_statistics_are_stored_and_unchanged_tables_are_not(normed):
    folder, _ = normed
    checkpoint = torch.load(folder / 'run/iter_8.pth', weights_only=False)
    keys = {f'backbone.{name}' for name in STATISTICS}
    assert keys <= checkpoint['state_dict'].keys()
    assert {f'module.{key}' for key in keys} <= checkpoint['ema_state_dict'].keys()
    assert 'backbone.table' not in checkpoint['state_dict']
    record = record_in(folder / 'run/iter_8.pth')
    assert not STATISTICS & record.digests.keys()
    assert {'table', 'patch_embed.projection.weight', 'stem.weight'} <= record.digests.keys()


def test_a_tested_and_a_resumed_run_have_the_statistics_of_training(normed, tmp_path):
    folder, runner = normed
    state = torch.load(folder / 'run/iter_8.pth', weights_only=False)['state_dict']
    cfg = config(folder, load_from=str(folder / 'run/iter_8.pth'), work_dir=str(tmp_path))
    tested = Runner.from_cfg(cfg)
    tested.test()
    own = tested.model.state_dict()
    for name in STATISTICS:
        assert torch.equal(own[f'backbone.{name}'], state[f'backbone.{name}'])
    cfg = config(
        folder, load_from=str(folder / 'run/iter_4.pth'), work_dir=str(tmp_path / 'on'),
        custom_hooks=[dict(type='EMAHook', momentum=0.1, update_buffers=True)], resume=True,
    )  # fmt: skip
    resumed = toy.train(cfg).model.state_dict()
    assert all(torch.equal(resumed[k], v) for k, v in runner.model.state_dict().items())


def test_files_of_a_run_with_batch_norms_give_its_features(normed, tmp_path):
    folder, runner = normed
    cfg, expected = config(folder), features(runner.model.backbone)
    one = base_of(cfg)
    assert (features(one) - expected).abs().max() > 1e-3
    load_adapter(one, folder / 'run/cdra_adapter.safetensors')
    assert (features(one) - expected).abs().max() < 1e-6
    file = read_adapter(folder / 'run/cdra_adapter.safetensors')
    assert set(file.carried) == STATISTICS
    last = torch.load(folder / 'run/iter_8.pth', weights_only=False)
    del last['ema_state_dict']
    torch.save(last, tmp_path / 'last.pth')
    FORMATS['adapter'](Export(cfg, str(tmp_path / 'last.pth'), tmp_path / 'a.safetensors'))
    assert set(read_adapter(tmp_path / 'a.safetensors').carried) == STATISTICS
    state = last['state_dict']
    backbone = runner.model.backbone
    backbone.load_state_dict(
        {k.removeprefix('backbone.'): v for k, v in state.items() if k.startswith('backbone.')}
    )
    actual, said = peft_features(cfg, tmp_path / 'lora', tmp_path / 'last.pth')
    assert (actual - features(backbone)).abs().max() < 1e-5
    assert '3 weights and buffers are not of the named base' in said[-1]


def test_a_base_that_fits_in_part_is_said_and_carried(tmp_path, capsys):
    cfg = toy.config(tmp_path)
    cfg.model.backbone.patch_size = 4  # of the file's 8
    runner = toy.train(cfg)
    said = capsys.readouterr().out
    name = 'patch_embed.projection.weight'
    assert f'missing are {name}' in said and 'stay so, frozen for good' in said
    assert f"also_train=['cls_token', '{name}']" in said and 'also_train_in_budget=False' in said
    expected = features(runner.model.backbone)
    one = base_of(cfg)
    load_adapter(one, tmp_path / 'run/cdra_adapter.safetensors')
    assert (features(one) - expected).abs().max() < 1e-5
    assert read_adapter(tmp_path / 'run/cdra_adapter.safetensors').carried == (name,)
    actual, _ = peft_features(cfg, tmp_path / 'lora', tmp_path / 'run/iter_8.pth')
    assert (actual - expected).abs().max() < 1e-5


@pytest.mark.parametrize('method', ['cdra', 'spt_lora'])
def test_what_the_base_lacks_is_trained_beside_the_budget(method, tmp_path, capsys):
    name = 'patch_embed.projection.weight'
    whole = dict(also_train=['cls_token', name], also_train_in_budget=False)
    settings = dict(type=method, **(dict(rank=1) if method == 'spt_lora' else {}))
    cfg = toy.config(tmp_path, cdra=dict(method=settings, **whole))
    cfg.model.backbone.patch_size = 4
    cfg.train_cfg.max_iters, cfg.default_hooks.checkpoint.interval = 1, 1
    runner = toy.train(cfg)
    assert 'frozen for good' not in capsys.readouterr().out
    backbone = runner.model.backbone
    assert dict(backbone.named_parameters())[name].requires_grad
    plan = plan_of(backbone)
    total = sum(value.numel() for value in dict(base_of(cfg).named_parameters()).values())
    beside = sum(plan.also_train.values())
    assert beside == 32 + 32 * 3 * 16
    assert 0.04 * total < plan.num_trainable - beside <= 0.05 * total
    assert plan.settings['also_train_in_budget'] is False
    assert record_in(tmp_path / 'run/iter_1.pth').settings['also_train_in_budget'] is False


def test_a_name_that_is_no_parameter_is_refused_before_scoring(tmp_path):
    cfg = toy.config(tmp_path, cdra=dict(also_train=['patch_embed.projection.wieght']))
    with pytest.raises(ConfigError, match=r"no parameter 'patch.*wieght' \(did you mean '.*weight"):
        toy.train(cfg)


# How much is hashed.


def test_a_run_hashes_its_base_once_and_so_does_a_load(tmp_path, monkeypatch):
    hashed, real = [], tensor_digest.add_bytes

    def update(digest, tensor):
        hashed.append(tensor.numel())
        real(digest, tensor)

    for module in (fingerprints, tensor_digest):
        monkeypatch.setattr(module, 'add_bytes', update)
    toy.train(toy.config(tmp_path))
    base = base_of(toy.config(tmp_path))
    size = sum(value.numel() for value in base_state(base).values())
    path = tmp_path / 'run/cdra_adapter.safetensors'
    own = sum(value.numel() for value in read_safetensors(path).values())
    # Besides, the digest of the adapter file's own tensors.
    assert size <= sum(hashed) <= size + own

    hashed.clear()
    load_adapter(base, path)
    assert sum(hashed) <= size + own

    hashed.clear()
    last = str(tmp_path / 'run/iter_8.pth')
    Runner.from_cfg(toy.config(tmp_path, load_from=last, work_dir=str(tmp_path / 'test'))).test()
    # What the model holds at first differs in its first tensors.
    assert sum(hashed) <= 1.2 * size

    hashed.clear()
    cfg = toy.config(tmp_path, load_from=str(tmp_path / 'run/iter_4.pth'), resume=True)
    cfg.work_dir = str(tmp_path / 'resumed')
    toy.train(cfg)
    assert sum(hashed) <= 1.2 * size + own


# Whom a file may send us to.


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('run')
    toy.train(toy.config(folder))
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch'


def redirected(run, folder, **base):
    """A checkpoint of the run whose record names another base."""
    checkpoint = torch.load(run / 'run/iter_8.pth', weights_only=False)
    state = checkpoint['state_dict']
    entries = json.loads(bytes(state[RECORD].tolist()))
    entries['base'] |= base
    text = json.dumps(entries).encode()
    state[RECORD] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    torch.save(checkpoint, folder / 'redirected.pth')
    return str(folder / 'redirected.pth')


def other_base(run, folder):
    """A local file that the config names, of other weights."""
    state = torch.load(toy.base_file(run), weights_only=True)['state_dict']
    torch.save({'state_dict': {k: v + 1 for k, v in state.items()}}, folder / 'other.pth')
    return str(folder / 'other.pth')


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize('kind', ['init_cfg', 'checkpoint'])
@pytest.mark.parametrize('tool', ['test', 'merge'])
def test_an_address_that_only_a_file_names_is_not_fetched(run, tmp_path, hub, kind, tool):
    trace = tmp_path / 'executed'
    torch.save({'state_dict': {}, 'meta': Payload(trace)}, tmp_path / 'payload.pth')
    with serve(Behaviour((tmp_path / 'payload.pth').read_bytes())) as server:
        address = f'{server.url}/vit-5641ca5a.pth'
        path = redirected(run, tmp_path, kind=kind, path=address)
        cfg = toy.config(run, work_dir=str(tmp_path / 'work'))
        cfg.model.backbone.init_cfg.checkpoint = other = other_base(run, tmp_path)
        message = (
            rf"tensors differ.*came from '{address}'.*{other} holds other weights.*{address} was "
            rf"not fetched: the config names '{other}'"
        )
        with pytest.raises(CheckpointError, match=message):
            if tool == 'test':
                cfg.load_from = path
                Runner.from_cfg(cfg).test()
            else:
                FORMATS['merged'](Export(cfg, path, tmp_path / 'merged.pth'))
        assert not server.ranges
    assert not trace.exists() and not list(hub.rglob('*.pth'))
    assert not (tmp_path / 'merged.pth').exists()


def test_an_address_that_the_config_names_too_is_fetched(run, tmp_path, hub):
    with serve(Behaviour((run / 'base.pth').read_bytes())) as server:
        address = f'{server.url}/base.pth'
        cfg = toy.config(run, load_from=redirected(run, tmp_path, path=address))
        cfg.work_dir = str(tmp_path / 'work')
        cfg.model.backbone.init_cfg.checkpoint = address
        Runner.from_cfg(cfg).test()
        assert len(server.ranges) == 1


def test_a_base_from_an_address_in_load_from_is_named_by_the_config_of_the_run(tmp_path, hub):
    state = torch.load(toy.base_file(tmp_path), weights_only=True)['state_dict']
    state = {f'backbone.{key}': value for key, value in state.items()}
    torch.save({'state_dict': state}, tmp_path / 'whole.pth')
    with serve(Behaviour((tmp_path / 'whole.pth').read_bytes())) as server:
        cfg = toy.config(tmp_path, load_from=f'{server.url}/whole.pth')
        cfg.model.backbone.pop('init_cfg')
        plain = Config(cfg.to_dict())
        runner = toy.train(cfg)
        dumped = Config.fromfile(next((tmp_path / 'run').glob('*.py')))
        base = dict(kind='checkpoint', path=plain.load_from, prefix='backbone.')
        assert dumped.model.backbone.base == base
        last = torch.load(tmp_path / 'run/iter_8.pth', weights_only=False)['state_dict']
        model = MODELS.build(dumped.model)
        model.load_state_dict(dict(last))
        own = runner.model.state_dict()
        assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items())
        # A tool that puts the checkpoint into load_from keeps the base first.
        keep_base(plain)
        assert plain.model.backbone.base == base
        plain.load_from = None
        assert named_bases(plain)[0].path == base['path']
        del plain.model.backbone['base']
        with pytest.raises(CheckpointError, match='not fetched: the config names no base'):
            MODELS.build(plain.model).load_state_dict(dict(last))


@pytest.mark.parametrize('what', ['fifo', 'device', 'folder', 'missing'])
def test_a_path_that_is_no_regular_file_is_not_opened(run, tmp_path, what):
    path = {'device': Path('/dev/zero'), 'folder': tmp_path}.get(what, tmp_path / 'base')
    if what == 'fifo':
        os.mkfifo(path)
    cfg = toy.config(run, load_from=redirected(run, tmp_path, path=str(path)))
    cfg.work_dir = str(tmp_path / 'work')
    cfg.model.backbone.init_cfg.checkpoint = other_base(run, tmp_path)
    reason = 'does not exist' if what == 'missing' else 'is no regular file'
    with pytest.raises(CheckpointError, match=f'{path} {reason}'):
        Runner.from_cfg(cfg).test()


def test_a_checkpoint_that_names_an_adapted_one_as_its_base_is_refused(run, tmp_path):
    path = str(tmp_path / 'redirected.pth')
    redirected(run, tmp_path, kind='checkpoint', path=path, prefix='backbone.')
    cfg = toy.config(run, load_from=path, work_dir=str(tmp_path / 'work'))
    cfg.model.backbone.init_cfg.checkpoint = other_base(run, tmp_path)
    with pytest.raises(CheckpointError, match='with adapters, which is no base of another'):
        Runner.from_cfg(cfg).test()


def test_an_adapted_checkpoint_as_init_cfg_is_refused(run, tmp_path):
    path = redirected(run, tmp_path)
    cfg = toy.config(run, work_dir=str(tmp_path / 'work'))
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path), prefix='backbone.')
    with pytest.raises(CheckpointError, match='init_cfg names a checkpoint with adapters'):
        toy.train(cfg)


@pytest.mark.parametrize(
    'base', [dict(kind='other'), dict(path=5), dict(prefix=None), dict(more=1)], ids=str
)
def test_a_record_that_names_no_base_properly_is_refused(run, tmp_path, base):
    state = torch.load(redirected(run, tmp_path, **base), weights_only=False)['state_dict']
    with pytest.raises(CheckpointError, match='is no base|record of the checkpoint is damaged'):
        restore(base_of(toy.config(run)), dict(state), 'backbone.')
