"""Fetching, unpacking and checking the data sets that the shipped configs use.

Needs no OpenMMLab. In reading order: `sources` says where a data set comes from and what a
complete copy holds, `download` and `unpack` bring it in, `camvid`, `vtab`, `birds` and `matlab`
convert, `demo_images` generates, `completeness` counts what is there, `inspection` looks at
every file of it, `prepare` joins them. The layouts are `pairs` (label maps) and `listed` (class
ids in lists, which `list_files` reads).
"""

from .completeness import Report, check
from .demo_images import make_demo
from .inspection import Inspection, inspect_data
from .layout import Fault, Split
from .prepare import prepare
from .source import Archive, Source
from .sources import SOURCES

__all__ = [
    'SOURCES',
    'Archive',
    'Fault',
    'Inspection',
    'Report',
    'Source',
    'Split',
    'check',
    'inspect_data',
    'make_demo',
    'prepare',
]
