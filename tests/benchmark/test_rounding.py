"""The study of rounded updates: its ways differ in rounding alone, its metrics are the usual."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from cdra_mm.benchmark import rounding
from cdra_mm.benchmark.rounding import WAYS, Training, main
from cdra_mm.benchmark.small_tasks import Task, read_dense, read_vtab
from cdra_mm.core import DataError
from cdra_mm.core.adapters.copied_weights import carriers


def tiny_vit(size):
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=size, patch_size=16, embed_dim=48, depth=2, num_heads=2, num_classes=0,
        global_pool='',
    )  # fmt: skip


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (20, 24, 3))
    Image.fromarray(values.astype(np.uint8)).save(path)


@pytest.fixture
def vtab(tmp_path):
    folder = tmp_path / 'vtab'
    for split, count in (('train800', 12), ('val200', 4)):
        names = [f'images/{split}/{i}.png' for i in range(count)]
        for i, name in enumerate(names):
            picture(folder / name, i)
        lines = ''.join(f'{name} {i % 3}\n' for i, name in enumerate(names))
        (folder / f'{split}.txt').write_text(lines)
    return folder


@pytest.fixture
def dense(tmp_path):
    folder = tmp_path / 'dense'
    for split, count in (('train', 8), ('val', 2)):
        for i in range(count):
            picture(folder / 'img_dir' / split / f'{i}.png', i)
            mask = np.random.default_rng(i).integers(0, 4, (20, 24)).astype(np.uint8)
            (folder / 'ann_dir' / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(folder / 'ann_dir' / split / f'{i}.png')
    return folder


def test_tasks_are_read_as_squares(vtab, dense):
    task = read_vtab(vtab, 32)
    assert not task.dense and task.classes == 3
    assert task.train[0].shape == (12, 3, 32, 32) and task.train[0].dtype == torch.uint8
    assert task.train[1].tolist() == [0, 1, 2] * 4 and len(task.val[1]) == 4
    task = read_dense(dense, 16, void=3)
    assert task.dense and task.classes == 3
    assert task.train[1].shape == (8, 16, 16) and set(task.val[1].unique().tolist()) == {
        0,
        1,
        2,
        255,
    }


def test_a_list_with_a_fault_is_named(vtab):
    (vtab / 'val200.txt').write_text('images/val200/0.png one\n')
    with pytest.raises(DataError, match=r'val200.txt:1: expected "path label"'):
        read_vtab(vtab, 32)


def test_metrics_are_accuracy_and_mean_iou():
    images = torch.zeros(2, 3, 1, 2)
    right = torch.tensor([[[0, 0]], [[1, 255]]])
    dense = Task((images, right), (images, right), 3)
    # Class 0: 1 of 2; class 1: 1 of 2; class 2 does not occur; the ignored pixel does not count.
    assert dense.score(torch.tensor([[[0, 1]], [[1, 2]]])) == pytest.approx(50)
    labels = torch.tensor([0, 2, 1, 1])
    assert Task((images, labels), (images, labels), 3).score(torch.tensor([0, 2, 0, 0])) == 50


def test_ways_differ_in_rounding_alone(vtab):
    training = Training(read_vtab(vtab, 32), tiny_vit, 0, 3, 4, 1e-3)
    plan = training.plan()
    assert training.plan() == plan
    losses = {way: training.run(plan, way)['loss'] for way in WAYS}
    assert len(set(losses.values())) == 3
    assert max(losses.values()) - min(losses.values()) < 0.05
    assert training.run(plan, WAYS[0])['loss'] == losses[WAYS[0]]


@pytest.mark.parametrize('updates', [False, True])
def test_weights_are_rounded_in_the_forward(vtab, updates):
    training = Training(read_vtab(vtab, 32), tiny_vit, 0, 1, 4, 1e-3)
    model = training._model()
    rounding.apply_plan(model.backbone, training.plan())
    rounding._round_(model.backbone, updates=updates)
    seen = []

    def note(*_):
        for module in carriers(model.backbone):
            copies = [made.weight for made in module.cdra.copies.values()]
            seen.extend(copies if updates else [module._parameters['weight']])

    model.backbone.norm.register_forward_pre_hook(note)
    model(training.task.train[0][:2])
    matrices = [weight for weight in seen if weight.dim() == 2]
    assert matrices
    assert all(torch.equal(weight, weight.bfloat16().float()) for weight in matrices)


def test_command_writes_every_run(vtab, dense, tmp_path, capsys):
    words = ['--weights', '-', '--vtab', str(vtab), '--dense', f'{dense}:3', '--seeds', '0', '1']
    words += ['--iterations', '2', '--sizes', '32', '32', '--batches', '4', '2']
    main([*words, '--json', str(tmp_path / 'r.json')], backbone=lambda _, size: tiny_vit(size))
    found = json.loads((tmp_path / 'r.json').read_text())
    assert list(found) == ['vtab', 'dense']
    assert all(list(ways) == list(WAYS) for ways in found.values())
    assert all(len(runs) == 2 for ways in found.values() for runs in ways.values())
    assert WAYS[2] in capsys.readouterr().out.splitlines()[-4]
