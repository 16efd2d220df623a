"""Our figures leave the user's matplotlib as it was."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from cdra_mm.pictures import new_figure, pixels_of, render, styled


def test_style_ends_with_its_block_and_overrides_the_users():
    import matplotlib

    with matplotlib.rc_context({'font.size': 31.0, 'text.usetex': True}):
        with styled():
            assert matplotlib.rcParams['font.size'] == 9.0
            assert not matplotlib.rcParams['text.usetex']
        assert matplotlib.rcParams['font.size'] == 31.0


def test_style_draws_without_pyplot_and_loads_matplotlib_late(repository):
    code = (
        'import sys\n'
        'from cdra_mm.pictures import new_figure, render, styled\n'
        'print("matplotlib" in sys.modules)\n'
        'with styled(): render(new_figure(1, 1), "png")\n'
        'print("matplotlib.pyplot" in sys.modules)\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=repository, capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ['False', 'False']


def test_style_gives_the_same_file_twice():
    def draw():
        with styled():
            figure = new_figure(2, 1)
            figure.subplots().plot([1, 3, 2])
        return figure

    for form in ('png', 'svg'):
        assert render(draw(), form) == render(draw(), form)


def test_style_pixels_are_the_figure():
    with styled():
        figure = new_figure(2, 1)
        figure.set_facecolor('#FF8000')
    pixels = pixels_of(figure)
    assert pixels.shape == (120, 240, 3) and pixels.dtype == np.uint8
    assert pixels[5, 5].tolist() == [255, 128, 0]
