"""Images, labels and lists that are wrong, or only unusual."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import DefaultScope
from mmpretrain.models import VisionTransformer
from mmpretrain.structures import DataSample

from cdra_mm.core import (
    ConfigError,
    DataError,
    PlanError,
    ScoreError,
    estimate_scores,
    find_targets,
    make_plan,
)
from cdra_mm.mm.datasets import FGVC, VTAB1k
from cdra_mm.mm.planning.label_check import check_labels, named_loss
from cdra_mm.mm.planning.scoring import SeededSamples, drawn_samples
from tests.mm import toy
from tests.models import TinyViT, images, losses

from .case import heading

LIST = 'images/a.jpg 0\n'


def labelled(label):
    """A sample of a classifier with four classes, checked."""
    sample = DataSample(metainfo=dict(img_path='a.jpg'))
    sample.set_field(label, 'gt_label')
    check_labels(SimpleNamespace(head=SimpleNamespace(num_classes=4)), [sample])


def task(folder, text, name='train800.txt'):
    """A VTAB-1k task with one image and this list."""
    root = folder / 'dtd'
    (root / 'images').mkdir(parents=True, exist_ok=True)
    (root / 'images' / 'a.jpg').write_bytes(b'image')
    (root / name).write_text(text, encoding='utf-8')
    return VTAB1k(str(root), 'train800', serialize_data=False)


def vit(height, width):
    """A run's backbone gives finite features of images of this size."""
    with torch.no_grad(), DefaultScope.overwrite_default_scope('mmpretrain'):
        backbone = VisionTransformer(toy.ARCH, img_size=toy.SIZE, patch_size=8, out_type='featmap')
        (features,) = backbone(torch.randn(1, 3, height, width))
    assert torch.isfinite(features).all()
    return tuple(features.shape[2:])


with heading('Data sets and lists') as (refused, taken):

    @refused('a data folder that is not there', DataError, 'cdra data prepare vtab unpacks it')
    def _(folder):
        VTAB1k(str(folder / 'dtd'), 'train800')

    @refused('a list that is not there', DataError, "does not exist (lists there: ['test.txt'])")
    def _(folder):
        task(folder, LIST, 'test.txt')

    @refused('a line without a label', DataError, 'train800.txt:2: expected "path label"')
    def _(folder):
        task(folder, LIST + 'images/b.jpg\n')

    @refused(
        'a label out of range in a list',
        DataError,
        'train800.txt:1: label 47 is out of range for 47 classes',
    )
    def _(folder):
        task(folder, 'images/a.jpg 47\n')

    @refused('an image listed twice', DataError, 'is listed already at')
    def _(folder):
        task(folder, LIST + 'images/./a.jpg 1\n')

    @refused('an image that is not there', DataError, '1 of 2 listed images are missing under')
    def _(folder):
        task(folder, LIST + 'images/b.jpg 1\n')

    @refused('a list that is no UTF-8 text', DataError, 'is not UTF-8 text (byte 0)')
    def _(folder):
        task(folder, LIST)
        (folder / 'dtd' / 'train800.txt').write_bytes(b'\xff\xfe')
        VTAB1k(str(folder / 'dtd'), 'train800')

    @refused(
        'a path with `..` that leaves the folder',
        DataError,
        'leaves the data folder; paths are relative to it',
    )
    def _(folder):
        task(folder, 'images/../../a.jpg 1\n')

    @refused(
        'an absolute path, also one into the folder',
        DataError,
        'leaves the data folder; paths are relative to it',
    )
    def _(folder):
        task(folder, f'{folder}/dtd/images/a.jpg 1\n')

    @taken(
        'a symbolic link in the data folder',
        'is followed, wherever it leads: you have put it there (no archive can, see below), as '
        'many do to keep images on another disk',
    )
    def _(folder):
        (folder / 'elsewhere').mkdir()
        (folder / 'elsewhere' / 'b.jpg').write_bytes(b'image')
        (folder / 'dtd').mkdir()
        os.symlink(folder / 'elsewhere', folder / 'dtd' / 'linked')
        assert len(task(folder, 'linked/b.jpg 1\n')) == 1

    @refused(
        'a JSON list with a class id that is no integer',
        DataError,
        "train.json:1: the class id of 'a.jpg' must be an integer, got '7'",
    )
    def _(folder):
        for name in ('train', 'val', 'test'):
            (folder / f'{name}.json').write_text('{"a.jpg": "7"}')
        FGVC(str(folder), 'train', num_classes=1)

    @refused(
        'an image in the training and in the test list',
        DataError,
        'stands in train.json and in test.json',
    )
    def _(folder):
        for name in ('train', 'val', 'test'):
            (folder / f'{name}.json').write_text(f'{{"{"val" if name == "val" else "a"}.jpg": 7}}')
        FGVC(str(folder), 'train', num_classes=1)

    @refused('an empty training set', DataError, 'the training data set is empty')
    def _(folder):
        drawn_samples(0, 400, 0, SimpleNamespace())

    @taken('a training set smaller than `num_samples`', 'all of it is scored, with a warning')
    def _(folder):
        said = []
        assert drawn_samples(3, 400, 0, SimpleNamespace(warning=said.append)) == [0, 1, 2]
        assert said == ['num_samples=400: the training set has 3, using all of them']


with heading('Images and labels') as (refused, taken):

    @refused(
        'an image that cannot be decoded', DataError, 'training sample 0 (a.jpg) cannot be loaded'
    )
    def _(folder):
        from mmcv.transforms import LoadImageFromFile

        class Broken(list):
            def __getitem__(self, index):
                return LoadImageFromFile()(dict(img_path=str(folder / 'a.jpg')))

            def get_data_info(self, index):
                return dict(img_path='a.jpg')

        (folder / 'a.jpg').write_bytes(b'\xff\xd8 no picture')
        SeededSamples(Broken([0]), 0)[0]

    @refused(
        'a label that is no class of the head',
        DataError,
        'a.jpg has the label ids [4]: the head has num_classes=4',
    )
    def _(folder):
        labelled(torch.tensor([4]))

    @refused(
        'labels of a type that the loss does not take',
        DataError,
        'a.jpg has labels of the type torch.float32, 1 to 1, and the loss cannot take them',
    )
    def _(folder):
        sample = DataSample(metainfo=dict(img_path='a.jpg')).set_gt_label(torch.tensor([1.0]))
        model = SimpleNamespace(head=SimpleNamespace(num_classes=4))
        check_labels(model, [sample])
        with named_loss(model, [sample]):
            torch.nn.functional.cross_entropy(torch.zeros(1, 4), sample.gt_label)

    @taken('training data of one class', 'they are scored, as long as the head has more classes')
    def _(folder):
        x, labels = images(4)
        scores = estimate_scores(TinyViT(drop=0.0), [(x, torch.zeros_like(labels))], losses)
        assert make_plan(scores, gamma=0.1).num_trainable > 0

    @refused('a head with one class', ScoreError, 'the loss does not depend on the backbone')
    def _(folder):
        x, labels = images(4)
        estimate_scores(TinyViT(classes=1), [(x, torch.zeros_like(labels))], losses)

    @refused('a loss that is not finite', ScoreError, 'the loss of sample 1 is nan')
    def _(folder):
        x, labels = images(4)
        x[1] = float('nan')
        estimate_scores(TinyViT(), [(x, labels)], losses)

    @refused('a gradient that is not finite', ScoreError, 'the gradient of sample 2 is not finite')
    def _(folder):
        def steep(model, batch):
            each = list(losses(model, batch).unbind())
            each[2] = (each[2] - each[2].detach()).abs().sqrt()  # 0, with an infinite slope
            return torch.stack(each)

        estimate_scores(TinyViT(), [images(4)], steep)

    @taken(
        'a number of samples that the batch size does not divide',
        'the last batch is smaller; the scores are the same',
    )
    def _(folder):
        model = TinyViT(drop=0.0).double()
        x, labels = images(6, torch.float64)
        parts = [[(x[:4], labels[:4]), (x[4:], labels[4:])], [(x, labels)]]
        one, other = (estimate_scores(model, batches, losses) for batches in parts)
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=0)

    @taken('images that are not square', 'position embeddings are resized to them')
    def _(folder):
        assert vit(24, 40) == (3, 5)

    @taken(
        'images smaller than a patch, or of a size that the patch does not divide',
        "OpenMMLab's backbones pad them to whole patches",
    )
    def _(folder):
        assert vit(4, 5) == (1, 1)
        assert vit(9, 16) == (2, 2)

    @refused(
        'images of a size that the patch does not divide, with a backbone of timm',
        ConfigError,
        'takes multiples of its patch size 16, for example 32x16',
    )
    def _(folder):
        pytest.importorskip('timm')
        from cdra_mm.mm.backbones import TimmViT

        TimmViT('vit_tiny_patch16_224', options=dict(depth=1))(torch.zeros(1, 3, 40, 8))

    @refused(
        'a backbone without transformer blocks', PlanError, 'no adaptable weight in Sequential'
    )
    def _(folder):
        find_targets(torch.nn.Sequential(torch.nn.Linear(2, 2)))
