"""The legacy bitwise figure is what it says, and it is not IoU."""

from __future__ import annotations

import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules

from cdra_mm.mm.metrics import LegacyBitwiseMetric

register_all_modules(init_default_scope=False)


def sample(pred, truth):
    ids = [PixelData(data=torch.tensor(values)[None]) for values in (pred, truth)]
    return SegDataSample(pred_sem_seg=ids[0], gt_sem_seg=ids[1])


def evaluate(metric, samples, num_classes=8):
    metric.dataset_meta = {'classes': [str(i) for i in range(num_classes)]}
    evaluator = Evaluator([metric])
    for one in samples:
        evaluator.process(data_samples=[one], data_batch=None)
    return evaluator.evaluate(len(samples))


def legacy(pred, truth, **options):
    return evaluate(LegacyBitwiseMetric(**options), [sample(pred, truth)])


RATIO, DICE = 'legacy/bitwise_ratio_not_iou', 'legacy/bitwise_dice_not_dice'


def test_legacy_bitwise_metric_equals_the_digits_counted_by_hand():
    """6 & 3 = 2 and 6 | 3 = 7; 5 & 5 = 5; 0 counts for nothing."""
    figures = legacy([[6, 5], [0, 0]], [[3, 5], [0, 0]])
    assert figures[RATIO] == pytest.approx(100 * (2 + 5) / (7 + 5), abs=0.01)
    assert figures[DICE] == pytest.approx(100 * 2 * 7 / (6 + 5 + 3 + 5), abs=0.01)
    assert set(figures) == {RATIO, DICE}


def test_legacy_bitwise_metric_is_not_iou():
    """All pixels wrong: IoU is 0, the digits of 7 and 6 agree by 86 percent."""
    wrong = sample([[7, 7], [7, 7]], [[6, 6], [6, 6]])
    iou = evaluate(IoUMetric(iou_metrics=['mIoU', 'mDice']), [wrong])
    ratio = evaluate(LegacyBitwiseMetric(), [wrong])
    assert iou['mIoU'] == iou['mDice'] == 0
    assert ratio[RATIO] == pytest.approx(100 * 6 / 7, abs=0.01)
    assert ratio[DICE] == pytest.approx(100 * 2 * 6 / 13, abs=0.01)


def test_legacy_bitwise_metric_depends_on_how_classes_are_numbered():
    """The same mistake between other numbers; IoU is the same."""
    pairs = ([[1, 2]], [[2, 2]]), ([[3, 2]], [[2, 2]])
    ious = [evaluate(IoUMetric(), [sample(*pair)])['mIoU'] for pair in pairs]
    assert ious[0] == ious[1]
    assert legacy(*pairs[0])[RATIO] != legacy(*pairs[1])[RATIO]


def test_legacy_bitwise_metric_averages_images_and_not_pixels():
    images = [sample([[1, 1, 1, 1]], [[1, 1, 1, 1]]), sample([[1]], [[2]])]
    assert evaluate(LegacyBitwiseMetric(), images)[RATIO] == pytest.approx(50, abs=0.01)


def test_legacy_bitwise_metric_sets_ignored_pixels_to_zero():
    figures = legacy([[6, 7]], [[6, 255]])
    assert figures[RATIO] == figures[DICE] == 100
    assert legacy([[6, 7]], [[6, 1]], ignore_index=1)[RATIO] == 100


def test_legacy_bitwise_metric_reads_small_integer_types_without_overflow():
    """200 + 200 does not fit a byte."""
    pred = torch.full((1, 4), 200, dtype=torch.uint8)
    one = SegDataSample(
        pred_sem_seg=PixelData(data=pred[None]), gt_sem_seg=PixelData(data=pred[None].clone())
    )
    assert evaluate(LegacyBitwiseMetric(), [one])[DICE] == 100


def test_legacy_bitwise_metric_is_found_by_its_path_in_a_config():
    built = METRICS.build(dict(type='cdra_mm.mm.metrics.LegacyBitwiseMetric', ignore_index=3))
    assert isinstance(built, LegacyBitwiseMetric) and built.ignore_index == 3
