"""No two texts of a picture overlap, and none leaves it, at 4 as at 48 layers."""

from __future__ import annotations

from itertools import combinations

import pytest

from cdra_mm.analysis.comparison import comparison_pictures, name_apart
from cdra_mm.analysis.pictures_of_run import learnt_pictures, plan_pictures
from cdra_mm.analysis.regions import regions_of
from cdra_mm.analysis.run import read_run
from cdra_mm.pictures import styled

from .problems import learnt, write_run


def texts_of(figure):
    """Visible texts with their boxes in pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    with styled():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    found = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            # Ticks outside of the limits are kept, and not drawn.
            low, high = sorted(axis.get_view_interval())
            for tick in axis.get_major_ticks():
                if not low <= tick.get_loc() <= high:
                    tick.label1.set_visible(False)
                    tick.label2.set_visible(False)
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and all_visible(text):
            found.append((text.get_text(), text.get_window_extent(canvas.get_renderer())))
    return found, canvas.get_width_height()


def all_visible(artist):
    axes = getattr(artist, 'axes', None)
    return axes is None or axes.get_visible()


def check(picture):
    found, (width, height) = texts_of(picture.figure())
    assert found, picture.name
    for text, box in found:
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        assert inside, f'{picture.name}: {text!r} leaves the picture'
    for (one, a), (two, b) in combinations(found, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        along = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 1 or along <= 1, f'{picture.name}: {one!r} covers {two!r}'


@pytest.mark.parametrize('layers', [4, 48])
def test_labels_of_a_run_do_not_overlap(layers, tmp_path):
    _, plan = write_run(tmp_path / 'run', layers, 12)
    run = read_run(tmp_path / 'run')
    run.adapter = learnt(plan)
    regions = regions_of(run)
    pictures = [*plan_pictures(run, regions), *learnt_pictures(run, regions)]
    assert len(pictures) == 9
    for picture in pictures:
        check(picture)


@pytest.mark.parametrize('layers', [4, 48])
def test_labels_of_a_comparison_do_not_overlap(layers, tmp_path):
    folders = [tmp_path / f'a_rather_long_name_of_a_run_{i}' for i in range(3)]
    for i, folder in enumerate(folders):
        metrics = {'metrics': {'mIoU': 40.0 + i}, 'trainable_backbone': 1000 * i}
        write_run(folder, layers, 12, seed=i, summary=metrics)
    runs = name_apart([read_run(folder) for folder in folders])
    pictures, _ = comparison_pictures(runs, {name: regions_of(run) for name, run in runs.items()})
    assert len(pictures) == 4
    for picture in pictures:
        check(picture)


def test_labels_check_would_notice():
    from matplotlib.figure import Figure

    class Crowded:
        name = 'crowded'

        @staticmethod
        def figure():
            figure = Figure(figsize=(3, 1))
            figure.text(0.2, 0.5, 'one label')
            figure.text(0.3, 0.5, 'another')
            return figure

    with pytest.raises(AssertionError, match='covers'):
        check(Crowded)
