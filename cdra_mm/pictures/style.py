"""How every picture looks: colours, sizes, and figures apart from matplotlib's global state.

The one place that knows matplotlib's settings, for the report as for what training shows. No
pyplot, no global back end, and settings only within `styled`: a program that draws pictures of its
own keeps its settings. matplotlib is imported when the first figure is made.
"""

from __future__ import annotations

from colorsys import hsv_to_rgb
from contextlib import AbstractContextManager
from io import BytesIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

__all__ = [
    'COLOURS',
    'FRAME',
    'GREY',
    'INK',
    'SEQUENCE',
    'class_palette',
    'colour_of',
    'new_figure',
    'pixels_of',
    'render',
    'styled',
]

# Okabe and Ito's eight colours, which people with any kind of colour blindness tell apart; the
# yellow is left out, as it is too light for a line on white.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000')
FRAME = '#D55E00'  # what frames a block
INK = '#222222'
GREY = '#8A8A8A'
SEQUENCE = 'cividis'  # numbers from low to high
DOTS_PER_INCH = 120

STYLE: dict[str, Any] = {
    'font.family': 'sans-serif',
    'font.sans-serif': ['DejaVu Sans'],  # comes with matplotlib: the same picture everywhere
    'font.size': 9.0,
    'axes.titlesize': 10.0,
    'axes.labelsize': 9.0,
    'axes.edgecolor': '#666666',
    'axes.labelcolor': INK,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.axisbelow': True,
    'axes.titlelocation': 'left',
    'xtick.labelsize': 8.0,
    'ytick.labelsize': 8.0,
    'xtick.color': INK,
    'ytick.color': INK,
    'text.color': INK,
    'text.usetex': False,
    'grid.color': '#DDDDDD',
    'grid.linewidth': 0.6,
    'legend.fontsize': 8.0,
    'legend.frameon': False,
    'lines.linewidth': 1.6,
    'image.cmap': SEQUENCE,
    'image.interpolation': 'nearest',
    'figure.facecolor': 'white',
    'figure.dpi': DOTS_PER_INCH,
    'savefig.dpi': DOTS_PER_INCH,
    'savefig.bbox': None,
    'svg.fonttype': 'path',  # letters as shapes: no font is asked for
    'svg.hashsalt': 'cdra_mm',  # the same file from the same numbers
}


def styled() -> AbstractContextManager[None]:
    """Our settings for the time of a ``with`` block; the user's come back after it."""
    import matplotlib

    # The back end is of no concern to a figure that is only saved, and choosing one loads pyplot.
    rc: dict[Any, Any] = dict(matplotlib.rcParamsDefault)
    rc = {k: v for k, v in rc.items() if not k.startswith('backend')}
    return matplotlib.rc_context(rc=rc | STYLE)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that lays out its axes without overlaps.

    Args:
        width: In inches; 7.5 fills a page.
        height: In inches.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout='constrained')


def colour_of(position: int) -> str:
    """The colour of the n-th line, bar or run; they repeat after seven."""
    return COLOURS[position % len(COLOURS)]


def class_palette(count: int) -> list[list[int]]:
    """Colours of classes, told apart as long as they can be: `COLOURS`, then more hues.

    Returns:
        ``[red, green, blue]`` of 255 each, no colour twice.

    Example:
        >>> class_palette(2)
        [[0, 114, 178], [213, 94, 0]]
    """
    # Over an image black looks like shadow.
    told_apart = [colour for colour in COLOURS if colour != '#000000'][:count]
    palette = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in told_apart]
    position = 0
    while len(palette) < count:
        # Steps of the golden ratio never come back; three brightnesses in turn.
        hue, value = position * 0.61803398875 % 1.0, (0.95, 0.7, 0.45)[position % 3]
        colour = [round(255 * part) for part in hsv_to_rgb(hue, 0.75, value)]
        if colour not in palette:
            palette.append(colour)
        position += 1
    return palette


def render(figure: Figure, form: str) -> bytes:
    """A figure as a file.

    Args:
        figure: The figure.
        form: ``'png'`` or ``'svg'``.
    """
    data = BytesIO()
    metadata = {'Date': None} if form == 'svg' else {'Software': None}
    with styled():
        figure.savefig(data, format=form, metadata=metadata)
    return data.getvalue()


def pixels_of(figure: Figure) -> np.ndarray:
    """A figure as an image, uint8 ``[H, W, 3]``, red first."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with styled():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
