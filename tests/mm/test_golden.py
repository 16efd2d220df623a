"""Files of every format that a release has written load as the code of their time loaded them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from cdra_mm.core import Plan, load_adapter
from cdra_mm.core.artifacts.files import FORMAT_VERSION, read_adapter
from cdra_mm.mm.backbone import attach_loader
from cdra_mm.mm.checkpoints.record import RECORD_VERSION, read_record
from tests.golden import make

FOLDER = Path(make.__file__).parent
VERSIONS = {path.parent.name: path.parent for path in sorted(FOLDER.glob('*/expected.json'))}
NEWEST = f'checkpoint{RECORD_VERSION}_adapter{FORMAT_VERSION}'
EACH = pytest.mark.parametrize('version', VERSIONS)


def backbone(folder):
    """The plain backbone with its base."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(make.config(folder).model)
    model.backbone.init_weights()
    return attach_loader(model.backbone)


def close(features, expected):
    torch.testing.assert_close(features, torch.tensor(expected).double(), rtol=1e-4, atol=1e-4)


def test_there_is_a_file_of_every_version_up_to_the_one_that_is_written():
    assert list(VERSIONS) == [f'checkpoint{v}_adapter{v}' for v in (1, 2, 3)]
    assert list(VERSIONS)[-1] == NEWEST
    for folder in VERSIONS.values():
        assert sum(file.stat().st_size for file in folder.iterdir()) < 50_000


@EACH
def test_golden_checkpoint_loads(version, tmp_path):
    state = torch.load(VERSIONS[version] / 'checkpoint.pth', weights_only=False)['state_dict']
    own = {k.removeprefix('backbone.'): v for k, v in state.items() if k.startswith('backbone.')}
    model = backbone(tmp_path)
    before = make.features(model)
    model.load_state_dict(own, strict=True)
    expected = json.loads((VERSIONS[version] / 'expected.json').read_text())['checkpoint']
    close(make.features(model), expected)
    assert (make.features(model) - before).abs().max() > 1e-2
    assert read_record(own, '').plan == Plan.from_json(make.PLAN.read_text())


@EACH
@pytest.mark.filterwarnings('ignore:.*version 1, which knows')
def test_golden_adapter_file_loads(version, tmp_path):
    path = VERSIONS[version] / 'adapter.safetensors'
    model = backbone(tmp_path)
    load_adapter(model, path)
    close(
        make.features(model),
        json.loads((VERSIONS[version] / 'expected.json').read_text())['adapter'],
    )
    assert read_adapter(path).plan == Plan.from_json(make.PLAN.read_text())


def resumed(version, folder):
    """The checkpoint of two iterations later, of a run that goes on from a golden one."""
    loop = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=100)
    path = str(VERSIONS[version] / 'checkpoint.pth')
    cfg = make.config(folder, train_cfg=loop, resume=True, load_from=path)
    cfg.work_dir, cfg.experiment_name = str(folder / version), f'resumed_{version}'
    Runner.from_cfg(cfg).train()
    return torch.load(folder / version / 'iter_4.pth', weights_only=False)


def test_golden_checkpoints_of_one_run_go_on_as_one(tmp_path):
    """Their averaged weights too; what is written then is of now."""
    one, *others = (resumed(version, tmp_path) for version in VERSIONS)
    for other in others:
        for part in ('state_dict', 'ema_state_dict'):
            assert one[part].keys() == other[part].keys()
            for key, value in one[part].items():
                if key == 'backbone.cdra_record':  # it names the base by a path of the time
                    continue
                torch.testing.assert_close(other[part][key], value, rtol=1e-5, atol=1e-6)
    keys = [key for key in one['state_dict'] if 'cdra_' in key]
    assert sorted(keys) == [f'backbone.cdra_{name}' for name in ('digests', 'plan', 'record')]
    assert not any('cdra_' in key for key in one['ema_state_dict'])
    for key in ('backbone.layers.0.attn.qkv.cdra.weight:q.up', 'head.fc.weight'):
        averaged, own = one['state_dict'][key], one['ema_state_dict'][f'module.{key}']
        assert not torch.equal(averaged, own)
