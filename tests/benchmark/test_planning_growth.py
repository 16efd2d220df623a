"""Synthetic scores have the sizes that they stand for; the points of growth vary one thing."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.benchmark import planning_time
from cdra_mm.benchmark.growth import SAVED, compare_growth, points
from cdra_mm.benchmark.planning_time import SHAPES, compare_planning
from cdra_mm.core import make_plan
from cdra_mm.sizing.synthetic_scores import synthetic_scores

from .tiny import tiny_case

SMALL = {'a': (64, 48), 'b': (48, 64), 'norm': (48,)}


@pytest.mark.parametrize(
    ('entries', 'least', 'most'),
    [
        ('86M', 84e6, 87e6),
        ('304M', 300e6, 306e6),
        ('1.1B', 1.1e9, 1.15e9),
        ('6.7B', 6.70e9, 6.72e9),
    ],
)
def test_shapes_are_those_of_the_models(entries, least, most):
    total = sum(torch.Size(shape).numel() for shape in SHAPES[entries]().values())
    assert least < total < most


def test_synthetic_scores_have_structure_and_can_be_planned():
    scores = synthetic_scores(SMALL)
    assert {name: tuple(score.shape) for name, score in scores.items()} == SMALL
    assert all((score > 0).all() for score in scores.values())
    logs = scores['a'].log()
    assert logs.mean(0).std() > logs.mean(1).std() > 0.5  # columns differ more than rows
    assert torch.equal(scores['b'], synthetic_scores(SMALL)['b'])
    assert make_plan(scores, gamma=0.5).blocks


def test_planning_is_measured_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setitem(SHAPES, '86M', lambda: {'a': (512, 256), 'b': (256,)})
    record = compare_planning('86M', repeats=1, threads=1)
    assert list(record['candidates']) == [
        'select gamma', 'make_plan gamma', 'make_plan budget', 'plan_by_gradient'
    ]  # fmt: skip
    assert record['score_bytes'] == 4 * (512 * 256 + 256)
    assert record['largest_tensor_bytes'] == 4 * 512 * 256 and record['skipped'] == {}


def test_planning_out_of_memory_is_a_line(monkeypatch):
    def killed(*_):
        raise MemoryError('the process was ended by the system')

    monkeypatch.setattr(planning_time, 'in_child', killed)
    record = compare_planning('1.1B')
    assert record['candidates'] == {} and 'ended by the system' in record['skipped']['1.1B']


def test_points_change_one_thing_each():
    case = tiny_case()
    found = list(points(case, {'batch': (1, 2), 'image_size': (32,)}))
    assert [(p.axis, p.value) for p in found[:3]] == [
        ('batch', '1'),
        ('batch', '2'),
        ('image_size', '32'),
    ]
    assert [p.case.batch for p in found[:3]] == [1, 2, 3]
    scaled = [(p.scale, p.share) for p in found[3:]]
    assert scaled == [(0.5, 1), (1, 1), (2, 1), (1, 0.25), (1, 0.5), (1, 1)]
    assert {p.case for p in found[3:]} == {case}


def test_growth_record_has_the_ratios():
    pytest.importorskip('peft')
    record = compare_growth(tiny_case())
    assert record['scores_ratio_vs_backward'] > 0
    assert record['step_ratio_vs_frozen_limit'] > 0 and record['step_ratio_vs_peft_lora'] > 0
    assert record[SAVED] < 1
    half = compare_growth(tiny_case(), share=0.5)
    assert 0 < half['trainable'] < record['trainable']
    assert 'scores_ratio_vs_backward' not in half
