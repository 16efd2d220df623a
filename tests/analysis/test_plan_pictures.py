"""The numbers behind the pictures are those of the plan, of every method."""

from __future__ import annotations

import csv
import io
from statistics import mean

import pytest
import torch

from cdra_mm.analysis.change import change_picture, matrix_changes
from cdra_mm.analysis.comparison import comparison_pictures
from cdra_mm.analysis.overlap import overlaps
from cdra_mm.analysis.pictures_of_run import learnt_pictures, plan_pictures
from cdra_mm.analysis.regions import middle_region, regions_of
from cdra_mm.analysis.run import Run, read_run
from cdra_mm.analysis.shares import shares
from cdra_mm.analysis.updates import updates_of
from cdra_mm.core import ConfigError, select
from cdra_mm.core.artifacts.state_keys import adapter_prefix
from cdra_mm.pictures.frontier import draw_frontier, frontier

from .problems import PLANNED, learnt, plan_of_method, write_run


def rows_of(picture):
    """The CSV of a picture as dicts of text."""
    return list(csv.DictReader(io.StringIO(picture.table.to_csv())))


def by_name(pictures):
    return {picture.name: picture for picture in pictures}


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp('plans') / 'run'
    scores, plan = write_run(folder)
    run = read_run(folder)
    regions = regions_of(run)
    return scores, plan, run, regions, by_name(plan_pictures(run, regions))


def test_tables_of_blocks_and_sizes_equal_the_plan(made):
    _, plan, _, _, pictures = made
    blocks = {block.name: block for block in (*plan.blocks, *plan.dropped)}
    for name in ('blocks', 'block_sizes'):
        rows = rows_of(pictures[name])
        assert len(rows) == len(blocks)
        for row in rows:
            block = blocks[row['matrix']]
            given = (int(row['block rows']), int(row['block columns']), int(row['rank']))
            assert given == (len(block.rows), len(block.cols), block.rank)
    height = mean(len(block.rows) for block in blocks.values())
    assert f'{height:.0f} rows' in pictures['block_sizes'].caption


def test_maps_add_up_to_the_plan(made):
    scores, plan, _, _, pictures = made
    ranks = [float(row['rank']) for row in rows_of(pictures['map_ranks'])]
    assert sum(ranks) == sum(block.rank for block in plan.blocks)
    parameters = [float(row['trainable parameters']) for row in rows_of(pictures['map_parameters'])]
    assert sum(parameters) == plan.num_trainable
    total = sum(float(score.double().sum()) for score in scores.values())
    sensitivity = [float(row['squared gradient']) for row in rows_of(pictures['map_sensitivity'])]
    assert sum(sensitivity) == pytest.approx(total, rel=1e-6)


def test_density_is_that_of_the_selected_entries(made):
    scores, plan, _, regions, pictures = made
    region = middle_region(regions)
    mask = select(scores, num_sensitive=plan.num_sensitive)[region.name]
    for row in rows_of(pictures['density']):
        line = mask[int(row['index'])] if row['side'] == 'row' else mask[:, int(row['index'])]
        assert float(row['share selected']) == pytest.approx(line.float().mean().item())
    (row,) = rows_of(pictures['reorganised_matrix'])
    assert int(row['selected entries']) == int(mask.sum()) == region.num_selected


@pytest.mark.parametrize('shape', [(7, 5), (1000, 900), (361, 3)])
def test_shares_of_an_image_keep_the_count(shape):
    mask = torch.rand(shape) < 0.1
    rows, cols = torch.randperm(shape[0]).tolist(), torch.randperm(shape[1]).tolist()
    image = shares(mask, rows, cols)
    assert image.shape == tuple(min(side, 360) for side in shape)
    # Pixels differ in size by a row or column, so that the mean is only nearly the share.
    assert image.mean() == pytest.approx(mask.float().mean().item(), rel=0.1)
    if max(shape) <= 360:
        assert (image == mask[rows][:, cols].float().numpy()).all()


def test_matrix_is_the_one_asked_for(made):
    _, plan, run, regions, _ = made
    name = plan.blocks[0].name
    (row,) = rows_of(by_name(plan_pictures(run, regions, name))['reorganised_matrix'])
    assert row['matrix'] == name
    with pytest.raises(ConfigError, match="'layers.0.atn' is not in the plan"):
        plan_pictures(run, regions, 'layers.0.atn')


def test_spectrum_is_that_of_the_dense_update(made):
    _, plan, _, _, _ = made
    run = Run(made[2].path, 'run', plan=plan, method='cdra', adapter=learnt(plan))
    regions = regions_of(run)
    pictures = by_name(learnt_pictures(run, regions))
    rows = rows_of(pictures['spectrum'])
    for block in plan.blocks:
        prefix = adapter_prefix(block.name)
        dense = run.adapter[prefix + 'up'].double() @ run.adapter[prefix + 'down'].double()
        values = torch.linalg.svdvals(dense)[: block.rank]
        given = [float(row['singular value']) for row in rows if row['matrix'] == block.name]
        torch.testing.assert_close(torch.tensor(given, dtype=torch.float64), values)
        changes = matrix_changes(run, regions, updates_of(run, regions))
        assert changes[block.name] == pytest.approx(float(dense.norm()))
    assert 'not relative to the base' in pictures['map_change'].caption
    assert any('relative to the base' in reason for reason in run.missing)


def test_change_is_relative_to_the_base(made):
    run = made[2]
    name = made[1].blocks[0].name
    (row,) = rows_of(change_picture(run, {name: 3.0}, {name: 12.0}))
    assert float(row['% of the base norm']) == 25.0


@pytest.mark.parametrize('method', PLANNED)
def test_every_method_has_its_pictures(method, tmp_path):
    plan = plan_of_method(method)
    run = Run(tmp_path, method, plan=plan, method=method)
    regions = regions_of(run)
    pictures = by_name(plan_pictures(run, regions))
    learnt_pictures(run, regions)
    touched = [*plan.blocks, *plan.dropped, *plan.sparse]
    assert sorted(region.name for region in regions) == sorted(record.name for record in touched)
    if plan.num_trainable:
        rows = rows_of(pictures['map_parameters'])
        assert sum(float(row['trainable parameters']) for row in rows) == plan.num_trainable
    else:
        assert any('is trained by' in reason for reason in run.missing)
    assert touched or any('no blocks to show' in reason for reason in run.missing)
    # Entries that are listed one by one need no kept masks.
    if plan.sparse and not plan.blocks:
        assert {'reorganised_matrix', 'density'} <= set(pictures)
    for picture in pictures.values():
        assert picture.figure().axes


def test_overlap_is_the_jaccard_index(tmp_path):
    made = {name: write_run(tmp_path / name, seed=seed) for seed, name in enumerate('ab')}
    runs = {name: read_run(tmp_path / name) for name in made}
    found = overlaps(runs, {name: regions_of(run) for name, run in runs.items()})
    masks = {n: select(s, num_sensitive=p.num_sensitive) for n, (s, p) in made.items()}
    assert len(found) == len({b.name for _, p in made.values() for b in (*p.blocks, *p.dropped)})
    for first, second, matrix, rows, cols, entries in found:
        one, two = masks[first][matrix], masks[second][matrix]
        for dim, given in ((1, rows), (0, cols)):
            a, b = one.any(dim), two.any(dim)
            assert given == pytest.approx(float((a & b).sum() / (a | b).sum()))
        assert entries == pytest.approx(float((one & two).sum() / (one | two).sum()))


def test_frontier_holds_what_nothing_beats(tmp_path):
    generator = torch.Generator().manual_seed(1)
    points = {
        str(i): (int(torch.randint(9, (1,), generator=generator)), float(i % 7)) for i in range(30)
    }
    best = frontier(points)
    for name, (size, value) in points.items():
        reached = max((points[b][1] for b in best if points[b][0] <= size), default=-1.0)
        assert value <= reached and (name not in best or value == reached)


def test_comparison_leaves_out_what_is_measured_otherwise(tmp_path):
    for name, metrics in {'a': {'mIoU': 1.0}, 'b': {'mIoU': 2.0}, 'c': {'top1': 3.0}}.items():
        write_run(tmp_path / name, summary={'metrics': metrics})
    runs = {name: read_run(tmp_path / name) for name in 'abc'}
    pictures, missing = comparison_pictures(runs, {n: regions_of(r) for n, r in runs.items()})
    assert [row['run'] for row in rows_of(pictures[-1])] == ['a', 'b']
    assert any(reason.startswith('c is not among') for reason in missing)


@pytest.mark.parametrize(('count', 'shares', 'columns'), [(8, '0', 1), (9, '0', 2), (9, '0.50', 1)])
def test_a_long_legend_has_two_columns_where_its_labels_are_short(count, shares, columns):
    points = {f'm{i}': (float(i), float(i)) for i in range(count)}
    labels = dict.fromkeys(points, f'CDRA-SPT (Eq. 7 to the letter): 48.0 at {shares} %')
    figure = draw_frontier(points, labels, 'parameters', 'accuracy')
    figure.savefig(io.BytesIO(), dpi='figure')
    (legend,) = figure.legends
    entries = [text.get_window_extent() for text in legend.get_texts()]
    assert len({round(entry.x0) for entry in entries}) == columns
    assert max(entry.x1 for entry in entries) < figure.bbox.x1
