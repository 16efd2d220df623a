"""Several processes score, plan and train what one does, or all of them end with the error."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.core import Plan
from cdra_mm.core.model.row_int8 import is_int8, quantize
from cdra_mm.methods import METHODS

from . import scenarios, toy
from .ddp_run import outcomes, play

pytestmark = pytest.mark.timeout(600)  # of which a busy machine needs half

SCORED = (
    'per_sample',
    'per_batch',
    'summed',
    'two_samples',
    'one_share_without_gradient',
    'loss_that_averages_over_processes',
)
FAILING = ('image_that_is_broken', 'bug_on_one_process')
PAIR = (
    *SCORED,
    *FAILING,
    'in_bfloat16',
    'training',
    'trained_in_int8',
    'averaging',
    'resumed_from_one',
    'tested',
    'all_methods',
    'early_out_indices',
    'ruinous_rate',
    'probe_that_fails_on_one_process',
    'head_that_fails_on_one_process',
)
TRIPLE = (*SCORED, 'image_that_is_broken', 'training')


@pytest.fixture(scope='module')
def single(tmp_path_factory):
    """A folder, and what one process makes of each scenario."""
    folder = tmp_path_factory.mktemp('ddp')
    toy.base_file(folder)
    names = (*SCORED, 'training', 'averaging', 'tested')
    return folder, {name: getattr(scenarios, name)(folder) for name in names}


@pytest.fixture(scope='module')
def folder(single):
    """The folder with the outcomes of a group of two processes and one of three."""
    play(single[0], f'2:{",".join(PAIR)}', f'3:{",".join(TRIPLE)}')
    return single[0]


def assert_near(scores, expected):
    """Equal up to the order of the sums."""
    assert scores.keys() == expected.keys()
    for name, score in scores.items():
        bound = 1e-6 * float(expected[name].max()) + 1e-20
        torch.testing.assert_close(score, expected[name], rtol=1e-4, atol=bound)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        if 'running_' not in key:  # statistics of a batch norm are each process' own
            assert torch.equal(a[key], b[key]), key


# Scoring.


@pytest.mark.parametrize('count', [2, 3])
@pytest.mark.parametrize('name', SCORED)
def test_scores_of_several_processes_are_those_of_one(single, folder, name, count):
    results = outcomes(folder, name, count)
    scores = [result[0] if isinstance(result, tuple) else result for result in results]
    expected = single[1][name]
    assert_near(scores[0], expected[0] if isinstance(expected, tuple) else expected)
    for other in scores[1:]:
        assert_same(scores[0], other)


def test_scores_in_bf16_of_two_processes_are_those_of_fp32_but_for_their_rounding(single, folder):
    first, second = outcomes(folder, 'in_bfloat16', 2)
    assert_same(first, second)
    for name, expected in single[1]['per_sample'][0].items():
        torch.testing.assert_close(first[name].float(), expected, rtol=0.03, atol=1e-12)


@pytest.mark.parametrize('count', [2, 3])
def test_scores_take_one_all_reduce(folder, count):
    for scores, sizes in outcomes(folder, 'per_sample', count):
        entries = sum(score.numel() for score in scores.values())
        assert len(sizes) == 1 and entries <= sizes[0] < entries + 64 * len(scores)


@pytest.mark.parametrize(('name', 'count', 'culprit', 'message'), [
    ('image_that_is_broken', 2, 1, 'cannot be loaded: OSError: broken data stream'),
    ('image_that_is_broken', 3, 1, 'cannot be loaded: OSError: broken data stream'),
    ('bug_on_one_process', 2, 1, "'NoneType' object is not callable"),
])  # fmt: skip
def test_failure_of_one_process_ends_all_with_its_message(folder, name, count, culprit, message):
    for rank, outcome in enumerate(outcomes(folder, name, count)):
        assert isinstance(outcome, str) and message in outcome
        assert ('ScoreError: scoring failed on process' in outcome) is (rank != culprit)


# Training.


@pytest.mark.parametrize('count', [2, 3])
def test_several_processes_make_the_plan_of_one(single, folder, count):
    plans = [
        Plan.from_json((folder / f'{run}/cdra_plan.json').read_text())
        for run in ('training', f'training_{count}')
    ]
    assert plans[0] == plans[1] and plans[0].blocks
    first, *others = outcomes(folder, 'training', count)
    assert first.keys() == single[1]['training'].keys()
    for other in others:
        assert_same(first, other)


@pytest.mark.parametrize('name', ['averaging', 'resumed_from_one'])
def test_accumulation_and_average_end_where_one_process_ends(single, folder, name):
    for ends in outcomes(folder, name, 2):
        for weights, expected in zip(ends, single[1]['averaging'], strict=True):
            torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(ends[0]['head.fc.weight'], ends[1]['module.head.fc.weight'])


def test_run_of_two_processes_is_resumed_by_one(single, folder):
    cfg = scenarios.classifier(folder, resume=True)
    cfg.load_from, cfg.work_dir = str(folder / 'classifier_2/iter_4.pth'), str(folder / 'alone')
    ends = scenarios.averaged(toy.train(cfg))
    for weights, expected in zip(ends, single[1]['averaging'], strict=True):
        torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_is_tested_as_by_one_process(single, folder):
    assert single[1]['tested'].keys() == {'accuracy/top1'}
    assert outcomes(folder, 'tested', 2) == [pytest.approx(single[1]['tested'])] * 2


@pytest.mark.parametrize('name', METHODS)
def test_every_method_trains_without_looking_for_unused_parameters(folder, name):
    runs = [ends[name] for ends in outcomes(folder, 'all_methods', 2)]
    assert not [run for run in runs if isinstance(run, str)]
    (first, trained), (second, _) = runs
    assert_same(first, second)
    base = torch.load(toy.base_file(folder), weights_only=True)['state_dict']
    begin = {f'backbone.{key}': value for key, value in base.items()}
    for key in first.keys() & begin.keys():
        assert torch.equal(first[key], begin[key]) is (key not in trained), key


# What is trained.


def test_processes_find_the_same_to_be_out_of_reach(folder):
    first, second = outcomes(folder, 'early_out_indices', 2)
    assert first == second
    withheld, trained = first
    assert withheld and all(name.startswith(('layers.2.', 'ln1.')) for name in withheld)
    assert trained and all(name.startswith('layers.1.') for name in trained)


def test_a_probe_that_fails_on_one_process_withholds_nothing_on_any(folder):
    assert outcomes(folder, 'probe_that_fails_on_one_process', 2) == [{}, {}]


def test_a_head_that_one_process_cannot_fit_stays_as_it_was_on_all(folder):
    assert outcomes(folder, 'head_that_fails_on_one_process', 2) == [True, True]


def test_only_the_main_process_watches_the_rate(folder):
    first, second = outcomes(folder, 'ruinous_rate', 2)
    assert first['done'] and first['rate'] > 0 and second is None


def test_a_base_in_int8_is_the_same_on_all_processes(single, folder):
    one, other = outcomes(folder, 'trained_in_int8', 2)
    assert_same(one, other)
    small = [name for name, value in one.items() if is_int8(value)]
    assert len(small) == 12
    base = torch.load(toy.base_file(single[0]))['state_dict']
    for name in small:
        assert torch.equal(one[name].codes, other[name].codes)
        assert torch.equal(one[name].codes, quantize(base[name.removeprefix('backbone.')]).codes)
