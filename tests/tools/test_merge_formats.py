"""`tools/merge.py`: what each format gives, and what is refused before anything is written."""

from __future__ import annotations

import json
import os

import pytest
import torch

pytest.importorskip('mmengine')

from mmengine.registry import MODELS, DefaultScope

from cdra_mm.core import Block, MultiTask, NamedAdapters, Plan, load_adapter, read_task
from cdra_mm.core.artifacts.files import read_adapter
from cdra_mm.mm.export.merging import open_adapted
from cdra_mm.mm.export.task_head import head_of
from cdra_mm.mm.weights import read_common
from tests.mm.toy import CLASSES, SIZE, config, train

from .project import call


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A folder with the run of a classifier, and what its checkpoint gives on an image."""
    folder = tmp_path_factory.mktemp('formats')
    loop = dict(type='IterBasedTrainLoop', max_iters=8, val_interval=8)
    cfg = config(folder, 'cls', train_cfg=loop)
    cfg.dump(folder / 'toy.py')
    (folder / 'toy.txt').write_text('notes')
    train(cfg)
    image = torch.randn(2, 3, SIZE, SIZE)
    adapted = open_adapted(cfg, str(folder / 'run/iter_8.pth'))
    with torch.no_grad():
        outputs = {
            'features': adapted.backbone(image)[-1],
            'logits': adapted.model(image, mode='tensor'),
        }
    return folder, cfg, image, outputs


@pytest.fixture
def merge(run):
    def merge(out, *options, config='toy.py', checkpoint='run/iter_8.pth'):
        ended = call(run[0], 'merge', config, checkpoint, out, *options)
        return ended.code, ended.out, ended.last

    return merge


def base_backbone(cfg):
    """The backbone of the config with its base weights."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    backbone.eval()  # which does not return it
    return backbone


def test_adapter_format_is_the_file_of_the_run(run, merge):
    folder, cfg, image, outputs = run
    code, printed, _ = merge('adapter.safetensors', '--format', 'adapter')
    assert code == 0 and 'load_adapter' in printed and 'head' in printed
    file, own = (
        read_adapter(folder / name)
        for name in ('adapter.safetensors', 'run/cdra_adapter.safetensors')
    )
    assert file.plan == own.plan and file.base_fingerprint == own.base_fingerprint
    assert file.tensors.keys() == own.tensors.keys()
    assert all(torch.equal(file.tensors[key], value) for key, value in own.tensors.items())
    backbone = base_backbone(cfg)
    load_adapter(backbone, folder / 'adapter.safetensors')
    with torch.no_grad():
        assert torch.equal(backbone(image)[-1], outputs['features'])


def test_adapter_file_of_a_run_names_its_metrics(run):
    metrics = read_adapter(run[0] / 'run/cdra_adapter.safetensors').metrics
    summary = json.loads((run[0] / 'run/summary.json').read_text())
    assert metrics and metrics == summary['metrics']


def test_adapters_of_runs_are_switched_on_one_backbone(run):
    folder, cfg, image, outputs = run
    backbone = base_backbone(cfg)
    named = NamedAdapters(backbone)
    named.add('toy', folder / 'run/cdra_adapter.safetensors')
    with torch.no_grad():
        before = backbone(image)[-1]
        named.use('toy')
        assert torch.equal(backbone(image)[-1], outputs['features'])
        named.use(None)
        assert torch.equal(backbone(image)[-1], before)
    assert (before - outputs['features']).abs().max() > 1e-3


def test_task_format_brings_adapter_and_head_to_a_base_of_many(run, merge):
    """The checkpoint's outputs come back bit for bit, and in a batch beside another task."""
    folder, cfg, image, outputs = run
    code, printed, _ = merge('task.safetensors', '--format', 'task')
    assert code == 0 and 'MultiTask' in printed and 'a head of' in printed
    assert read_task(folder / 'task.safetensors').kind == 'ModelHead'
    backbone = base_backbone(cfg)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        heads = [head_of(MODELS.build(cfg.model)) for _ in range(2)]
    several = MultiTask(backbone)
    several.add('toy', folder / 'task.safetensors', heads[0])
    width = backbone.layers[0].ffn.layers[0][0].weight.shape[1]
    first = tuple(range(width))
    block = Block('layers.0.attn.proj.weight', (width, width), first, first, 1, 0)
    several.add('other', Plan(blocks=(block,)), heads[1])
    several.eval().use('toy')
    with torch.no_grad():
        assert torch.equal(several(image), outputs['logits'])
    first, _, second = several(image[[0, 0, 1]], tasks=['toy', 'other', 'toy'])
    torch.testing.assert_close(torch.stack([first, second]), outputs['logits'])
    code, printed, _ = merge('half.safetensors', '--format', 'task', '--dtype', 'bfloat16')
    sizes = [(folder / f'{name}.safetensors').stat().st_size for name in ('half', 'task')]
    assert code == 0 and sizes[0] < sizes[1]


def test_peft_format_gives_timm_the_outputs_of_the_run(run, merge):
    peft = pytest.importorskip('peft', reason='peft (extra test) is not installed')
    timm = pytest.importorskip('timm')
    folder, _, image, outputs = run
    code, printed, _ = merge('lora', '--format', 'peft')
    assert code == 0 and "timm's model" in printed and 'cls_token' not in printed.splitlines()[0]
    model = timm.models.VisionTransformer(
        img_size=SIZE, patch_size=8, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2, num_classes=0
    )
    base = torch.load(folder / 'base.pth', weights_only=True)['state_dict']
    model.load_state_dict(read_common(base).weights)
    model = peft.PeftModel.from_pretrained(model, folder / 'lora').eval()
    with torch.no_grad():
        features = model.base_model.model.forward_features(image)[:, 0]
    torch.testing.assert_close(features, outputs['features'], rtol=1e-5, atol=1e-5)


def test_peft_cdra_format_gives_timm_the_outputs_of_the_run(run, merge):
    pytest.importorskip('peft', '0.21', reason='peft (extra peft) is not installed')
    timm = pytest.importorskip('timm')
    from peft import PeftModel

    from cdra_mm.peft import CdraConfig

    folder, _, image, outputs = run
    code, printed, _ = merge('cdra', '--format', 'peft-cdra')
    assert code == 0 and "timm's model" in printed
    sizes = dict(img_size=SIZE, patch_size=8, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2)
    plain = timm.models.VisionTransformer(num_classes=0, **sizes)
    base = torch.load(folder / 'base.pth', weights_only=True)['state_dict']
    plain.load_state_dict(read_common(base).weights)
    plain.eval()
    with torch.no_grad():
        before = plain.forward_features(image)[:, 0]
    own = read_adapter(folder / 'run/cdra_adapter.safetensors').plan
    config = CdraConfig.from_pretrained(folder / 'cdra')
    assert config.base_fingerprint and config.plan.num_trainable == own.num_trainable
    model = PeftModel.from_pretrained(plain, folder / 'cdra').eval()
    with torch.no_grad():
        features = model.base_model.model.forward_features(image)[:, 0]
        torch.testing.assert_close(features, outputs['features'], rtol=1e-5, atol=1e-5)
        with model.disable_adapter():
            assert torch.equal(model.base_model.model.forward_features(image)[:, 0], before)
    assert (features - before).abs().max() > 1e-3


def test_onnx_format_gives_the_outputs_of_the_run(run, merge):
    pytest.importorskip('onnxscript', reason='onnxscript (extra export) is not installed')
    runtime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    folder, _, image, outputs = run
    code, printed, _ = merge('toy.onnx', '--format', 'onnx')
    assert code == 0 and f'[B, 3, {SIZE}, {SIZE}]' in printed
    session = runtime.InferenceSession(folder / 'toy.onnx')
    (logits,) = session.run(['logits'], {'images': image.numpy()})
    assert logits.shape == (2, CLASSES)
    torch.testing.assert_close(torch.from_numpy(logits), outputs['logits'], rtol=1e-4, atol=1e-5)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata['classes']) == list('abcd')
    assert json.loads(metadata['source'])['method'] == 'cdra'


REFUSALS = {
    'names of another format': (
        ['new.pth', '--names', 'timm'], '--names is for --format peft or peft-cdra',
    ),
    'type of another format': (
        ['new.pth', '--dtype', 'float16'], '--dtype is for --format task',
    ),
    'shape of another format': (
        ['new', '--format', 'peft', '--shape', '32', '32'], '--shape is for --format onnx',
    ),
    'folder of other files, adapters': (
        ['run', '--format', 'peft-cdra', '--force'], 'no folder of a PEFT',
    ),
    'no pixels': (['new.onnx', '--format', 'onnx', '--shape', '0', '32'], 'expected pixels'),
    'folder for a file': (['run', '--format', 'adapter', '--force'], 'run is a folder, and a file'),
    'file for a folder': (['toy.txt', '--format', 'peft', '--force'], 'is a file, and a folder'),
    'folder of other files': (['run', '--format', 'peft', '--force'], 'no folder of a PEFT'),
    'existing file': (['run/summary.json', '--format', 'adapter'], '--force replaces it'),
    'the checkpoint': (['run/iter_8.pth', '--force'], 'is the checkpoint, which is read'),
    'the base': (['base.pth', '--force'], 'is the base weights'),
    'another checkpoint': (['run/iter_4.pth', '--force'], 'is no merged checkpoint'),
}  # fmt: skip


@pytest.mark.parametrize('case', REFUSALS)
def test_merge_refuses_before_anything_is_written(case, run, merge):
    arguments, expected = REFUSALS[case]
    before = sorted(run[0].rglob('*'))
    code, _, line = merge(*arguments)
    assert code == 2 and expected in line, line
    assert sorted(run[0].rglob('*')) == before


class Program:
    """Pickled as a call that makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


TOOLS = {
    'merge': ['toy.py', 'hostile.pth', 'new.pth'],
    'test': ['toy.py', 'hostile.pth', '--work-dir', 'hostile'],
    'train': ['toy.py', '--work-dir', 'hostile', '--resume', 'hostile.pth'],
    'train from it': ['toy.py', '--work-dir', 'hostile', '--cfg-options', 'load_from=hostile.pth'],
    'train on it': [
        'toy.py', '--work-dir', 'hostile',
        '--cfg-options', 'model.backbone.init_cfg.checkpoint=hostile.pth',
    ],
    'convert_weights': ['hostile.pth', 'new.pth'],
}  # fmt: skip


@pytest.mark.parametrize('case', TOOLS)
def test_no_tool_executes_a_checkpoint(case, run):
    folder = run[0]
    state = torch.load(folder / 'base.pth', weights_only=True)['state_dict']
    program = Program(str(folder / 'executed'))
    torch.save(dict(state_dict=state, meta=program), folder / 'hostile.pth')
    ended = call(folder, case.split()[0], *TOOLS[case])
    assert not (folder / 'executed').exists()
    assert ended.code == 2 and 'hostile.pth' in ended.last
    assert 'nothing in a file is executed' in ended.last
