"""Masks as a run: those of a file, and the ones that SPT released."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from cdra_mm.analysis.run import read_run
from cdra_mm.core import CDRAError, compact

DOCUMENT = Path(__file__).parents[2] / 'docs/analysis.md'


def write_masks(path, masks):
    """Masks by budget and name, as `cdra_mm.reading.mask_file` describes such a file."""
    np.savez(
        path,
        **{
            f'b{budget}/{name}': np.array([*mask.shape, *mask.flatten().nonzero()[0]], np.int32)
            for (budget, name), mask in masks.items()
        },
    )


def some_masks(budgets):
    draw = np.random.default_rng(0)
    names = ('blocks.0.attn.proj.weight', 'blocks.1.mlp.fc1.weight')
    return {
        (budget, name): draw.random((6, 5)) < 0.3 * k
        for k, budget in enumerate(budgets, 1)
        for name in names
    }


@pytest.mark.parametrize('named', ['', '@0.4'])
def test_mask_file_is_a_run_with_its_masks(tmp_path, named):
    masks = some_masks(['0.4'])
    write_masks(tmp_path / 'task.npz', masks)
    run = read_run(tmp_path / f'task.npz{named}')
    assert set(run.kept.masks) == {name for _, name in masks}
    for (_, name), mask in masks.items():
        assert torch.equal(run.kept.masks[name], torch.from_numpy(mask))
    blocks = {block.name: block for block in (*run.plan.blocks, *run.plan.dropped)}
    for name, mask in run.kept.masks.items():
        rows, cols = compact(mask)
        assert (blocks[name].rows, blocks[name].cols) == (
            tuple(rows.tolist()),
            tuple(cols.tolist()),
        )


@pytest.mark.parametrize('named', ['', '@0.7'])
def test_mask_file_of_several_budgets_wants_one_of_them(tmp_path, named):
    write_masks(tmp_path / 'task.npz', some_masks(['0.4', '1.0']))
    with pytest.raises(CDRAError, match=r'name one of task\.npz@0\.4, task\.npz@1\.0$'):
        read_run(tmp_path / f'task.npz{named}')
    assert read_run(tmp_path / 'task.npz@1.0').plan is not None


def test_mask_file_that_is_none_is_refused(tmp_path):
    (tmp_path / 'task.npz').write_bytes(b'no archive')
    with pytest.raises(CDRAError, match='is not a readable mask file'):
        read_run(tmp_path / 'task.npz@0.4')


@pytest.mark.shared
def test_document_states_the_sizes_of_spts_blocks(shared):
    stated = re.findall(r'^\| (\w+) \| (\d+) \| (\d+) \| (\d+) \|$', DOCUMENT.read_text(), re.M)
    assert len(stated) == 4
    for task, *numbers in stated:
        plan = read_run(Path(shared) / f'data/spt_masks/{task}.npz@0.4').plan
        blocks = [*plan.blocks, *plan.dropped]
        rows, cols = (
            sum(len(getattr(b, k)) for b in blocks) / len(blocks) for k in ('rows', 'cols')
        )
        assert [len(blocks), round(rows), round(cols)] == [int(number) for number in numbers]
