"""One ONNX file serves all tasks: what onnxruntime gives is what the model gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cdra_mm.methods
from cdra_mm.core import CheckpointError, ConfigError, Part, Plan, PlanError
from cdra_mm.onnx_files import export_base, task_graph, writing
from tests.core.artifacts.many import backbone, lora_plan, many, other_kinds
from tests.core.problems import move, outputs, random_plan
from tests.models import images

assert cdra_mm.methods  # its import makes the kinds known that the plans below name

onnxruntime = pytest.importorskip('onnxruntime')
SHAPE = (3, 8, 8)


def run(path, given, count=3):
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    (found,) = session.run(['features'], {'images': images(count)[0].numpy(), **given})
    return torch.from_numpy(found)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp('onnx') / 'base.onnx'
    model = backbone(dtype=torch.float32)
    several = many(plans=[random_plan(model), lora_plan(model)], dtype=torch.float32)
    return several, export_base(several, path, SHAPE)


def features(several, name, count=3):
    several.use(name)
    with torch.no_grad():
        found = several.features(images(count)[0])
    several.use(None)
    return found


def test_inputs_of_a_task_give_its_features(exported):
    several, graph = exported
    assert graph.difference < 1e-5 and graph.outputs == ('features',)
    base = features(several, None)
    for name in several.names:
        found = run(graph.path, graph.inputs_of(several, name), 5)
        torch.testing.assert_close(found, features(several, name, 5), rtol=1e-4, atol=1e-5)
        assert float((features(several, name) - base).abs().max()) > 0.01
    torch.testing.assert_close(run(graph.path, {}), base, rtol=1e-4, atol=1e-5)


def test_task_that_comes_later_fits_where_its_rank_does(exported):
    several, graph = exported
    later = lora_plan(several.backbone)
    several.add('later', later)
    several.use('later')
    move(several, 9)
    several.use(None)
    found = run(graph.path, graph.inputs_of(several, 'later'))
    torch.testing.assert_close(found, features(several, 'later'), rtol=1e-4, atol=1e-5)
    several.add('more', random_plan(several.backbone, 0, 7))
    with pytest.raises(PlanError, match="'more' adapts .* by the rank .* has room for"):
        graph.inputs_of(several, 'more')
    several.add('other', Plan(also_train={'pos_embed': 40}))
    with pytest.raises(PlanError, match="'other' changes pos_embed, for which .* has no input"):
        graph.inputs_of(several, 'other')


def test_file_names_nothing_of_this_machine(exported, repository):
    content = Path(exported[1].path).read_bytes()
    assert str(repository).encode() not in content


def test_attention_of_torch_is_traced_too(tmp_path):
    several = many('mha', torch.float32)
    graph = export_base(several, tmp_path / 'a.onnx', SHAPE)
    found = run(graph.path, graph.inputs_of(several, 't0'))
    torch.testing.assert_close(found, features(several, 't0'), rtol=1e-4, atol=1e-5)


def test_refusals(tmp_path, monkeypatch):
    model = backbone(dtype=torch.float32)
    path = tmp_path / 'a.onnx'
    several = many(plans=[other_kinds(model)], dtype=torch.float32)
    with pytest.raises(PlanError, match="'t0' changes blocks.* otherwise than by low rank"):
        export_base(several, path, SHAPE)
    call = Plan(parts=(Part('blocks.0.norm1.affine', 'affine', {}, 16),))
    several = many(plans=[call], dtype=torch.float32)
    with pytest.raises(PlanError, match="of the kind 'affine'"):
        export_base(several, path, SHAPE)
    several = many(plans=[lora_plan(model)], dtype=torch.float32)
    with pytest.raises(ConfigError, match='cannot be called|cannot export'):
        export_base(several, path, (4, 8, 8))
    with pytest.raises(ConfigError, match=r'call eval\(\)'):
        export_base(several.train(), path, SHAPE)
    several.eval()
    monkeypatch.setattr(task_graph, 'TOLERANCE', -1)
    with pytest.raises(CheckpointError, match='other outputs than the model'):
        export_base(several, path, SHAPE)
    monkeypatch.setattr(writing, 'LARGEST', 10)
    with pytest.raises(ConfigError, match='less than 2 GiB'):
        export_base(several, path, SHAPE)
    assert not list(tmp_path.iterdir()) and several.current is None
    assert torch.equal(outputs(several, torch.float32), outputs(model, torch.float32))


def test_base_is_exported_while_a_task_is_in_use(tmp_path):
    """One that puts values of its own in the place of the base's."""
    model = backbone(dtype=torch.float32)
    token = Plan(also_train={'cls_token': model.cls_token.numel()})
    several = many(plans=[token], dtype=torch.float32)
    base = features(several, None)
    several.use('t0')
    graph = export_base(several, tmp_path / 'base.onnx', SHAPE)
    assert several.current == 't0' and graph.difference < 1e-5
    torch.testing.assert_close(run(graph.path, {}), base, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    'change, shape, match',
    [
        (
            lambda model: model.bfloat16(),
            SHAPE,
            'the model is in bfloat16: an ONNX file is written',
        ),
        (lambda model: model, (8, 8), r'shape=\(8, 8\): expected channels, height and width'),
        (lambda model: model, (3, -8, 8), 'three counts'),
        (lambda model: model.backbone, SHAPE, 'expected a cdra_mm.core.MultiTask around it'),
    ],
)
def test_what_cannot_be_exported_is_refused_at_once(change, shape, match, tmp_path):
    model = change(many(plans=[lora_plan(backbone())], dtype=torch.float32))
    with pytest.raises(ConfigError, match=match):
        export_base(model, tmp_path / 'base.onnx', shape)
