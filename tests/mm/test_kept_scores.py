"""What a run keeps of its scores: the selected set exactly, the sums, and little memory."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from cdra_mm.core import CheckpointError, ConfigError, PlanError, make_plan, select
from cdra_mm.core.planning.plan import Plan, SparseMatrix
from cdra_mm.methods import GPS
from cdra_mm.mm.planning import kept_scores
from cdra_mm.mm.planning.kept_scores import SCORES_FILE, read_kept, selected_masks, write_kept
from cdra_mm.mm.planning.run_plan import RunPlanner

from .toy import config, train


def some_scores():
    """Odd sizes, so that bits and alignment are put to the test; and ties."""
    generator = torch.Generator().manual_seed(1)
    shapes = {'a.weight': (7, 5), 'a.bias': (7,), 'b.weight:q': (65, 3), 'norm.weight': (1,)}
    scores = {n: torch.rand(s, generator=generator) ** 4 for n, s in shapes.items()}
    scores['a.weight'][2] = scores['a.weight'][3]
    return scores


@pytest.mark.parametrize('what', ['masks', 'all'])
def test_kept_scores_round_trip(tmp_path, what):
    scores = some_scores()
    masks = select(scores, gamma=0.3)
    write_kept(tmp_path / 'kept', scores, masks.items(), what=what, meta={'num_samples': 8})
    kept = read_kept(tmp_path / 'kept')
    assert list(kept.masks) == list(kept.shapes) == list(scores)
    assert kept.meta == {'num_samples': 8, 'what': what}
    for name, score in scores.items():
        assert torch.equal(kept.masks[name], masks[name])
        assert kept.shapes[name] == tuple(score.shape)
        assert kept.totals[name] == float(score.double().sum())
        if score.dim() == 2:
            torch.testing.assert_close(kept.row_sums[name], score.sum(1))
            torch.testing.assert_close(kept.col_sums[name], score.sum(0))
    assert set(kept.row_sums) == {'a.weight', 'b.weight:q'}
    assert list(kept.scores) == (list(scores) if what == 'all' else [])
    for name, score in kept.scores.items():
        assert torch.equal(score, scores[name].bfloat16())
    assert load_file(tmp_path / 'kept').keys()  # the package's own reader takes it


def test_kept_masks_take_a_bit_an_entry(tmp_path):
    scores = {'w': torch.rand(256, 256)}
    write_kept(tmp_path / 'kept', scores, select(scores, gamma=0.1).items())
    assert (tmp_path / 'kept').stat().st_size < 256 * 256 / 8 + 2 * 256 * 4 + 600


def test_kept_scores_are_half_written_never(tmp_path):
    scores = some_scores()

    def broken():
        yield 'a.weight', torch.ones(7, 5, dtype=torch.bool)
        raise PlanError('stop')

    with pytest.raises(PlanError):
        write_kept(tmp_path / 'kept', scores, broken())
    assert list(tmp_path.iterdir()) == []


def test_selected_masks_are_those_of_the_plan():
    scores = {n: s for n, s in some_scores().items() if n != 'norm.weight'}
    plan = make_plan(scores, budget_params=40, rank_rule='count')
    masks = {name: mask.clone() for name, mask in selected_masks(plan, scores)}
    assert sum(int(mask.sum()) for mask in masks.values()) == plan.num_sensitive > 0
    for block in (*plan.blocks, *plan.dropped):
        rows = torch.nonzero(masks[block.name].any(1)).flatten().tolist()
        assert sorted(block.rows) == rows


def test_selected_masks_of_single_entries_are_the_listed_ones():
    """GPS takes the largest of each row, which are not the largest of all."""
    scores = {'w': torch.tensor([[9.0, 8.0, 7.0], [1.0, 2.0, 3.0]]), 'b': torch.ones(2)}
    plan = Plan(sparse=(SparseMatrix('w', (2, 3), (0, 5)),), num_competing=6, num_sensitive=2)
    masks = {name: mask.clone() for name, mask in selected_masks(plan, scores)}
    assert masks['w'].tolist() == [[True, False, False], [False, False, True]]
    assert not masks['b'].any()


def test_selected_masks_refuse_a_plan_of_other_entries():
    scores = some_scores()
    plan = make_plan(scores, gamma=0.2, min_rank=1)
    other = {name: score.flip(0) for name, score in scores.items()}
    with pytest.raises(PlanError, match='not selected the entries with the largest scores'):
        list(selected_masks(plan, other))


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        ('truncated', 'is truncated or no safetensors file'),
        ('foreign', 'holds no kept scores'),
        ('missing', 'does not exist'),
    ],
)
def test_read_kept_names_the_file_at_fault(tmp_path, damage, message):
    path = tmp_path / 'kept.safetensors'
    scores = some_scores()
    if damage == 'truncated':
        write_kept(path, scores, select(scores, gamma=0.3).items())
        path.write_bytes(path.read_bytes()[:-20])
    if damage == 'foreign':
        save_file({'a': torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=f'kept.safetensors.*{message}'):
        read_kept(path)


def test_run_keeps_the_masks_of_its_plan(tmp_path):
    cdra = dict(keep_scores='masks', compete='matrices', allocation='scores')
    cfg = config(tmp_path, cdra=cdra)
    cfg.train_cfg.max_iters = 1
    train(cfg)
    plan = Plan.from_json((tmp_path / 'run' / 'cdra_plan.json').read_text())
    kept = read_kept(tmp_path / 'run' / SCORES_FILE)
    assert kept.meta['num_samples'] == 8 and kept.meta['method'] == 'cdra'
    assert sum(int(mask.sum()) for mask in kept.masks.values()) == plan.num_sensitive
    assert sum(mask.numel() for mask in kept.masks.values()) == plan.num_competing
    assert plan.blocks
    for block in plan.blocks:
        mask = kept.masks[block.name]
        inside = mask[list(block.rows)][:, list(block.cols)]
        assert int(inside.sum()) == int(mask.sum()) == block.num_sensitive


def test_run_keeps_nothing_unless_asked(tmp_path):
    cfg = config(tmp_path)
    cfg.train_cfg.max_iters = 1
    train(cfg)
    assert not (tmp_path / 'run' / SCORES_FILE).exists()
    assert json.loads((tmp_path / 'run' / 'cdra_plan.json').read_text())


@pytest.mark.parametrize('value', [True, 'mask', 3])
def test_keep_scores_refuses_other_values(value):
    with pytest.raises(ConfigError, match='keep_scores'):
        RunPlanner(GPS(), 8, None, None, (), 0, None, value)


def test_writing_holds_no_copy_of_all_scores(tmp_path, monkeypatch):
    """Arrays come one at a time: the next is made after the last one is written."""
    alive = []
    real = kept_scores._write_safetensors

    def watched(file, layout, arrays, metadata):
        def one_by_one():
            for array in arrays:
                alive.append(array.nbytes)
                yield array

        assert not isinstance(arrays, list | tuple)
        real(file, layout, one_by_one(), metadata)

    monkeypatch.setattr(kept_scores, '_write_safetensors', watched)
    scores = {str(i): torch.rand(64, 64) for i in range(5)}
    write_kept(tmp_path / 'kept', scores, select(scores, gamma=0.1).items(), what='all')
    assert len(alive) == 1 + 5 * 4 and max(alive) == 64 * 64 * 2
