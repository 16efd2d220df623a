"""Fetching, unpacking and checking the data sets that the shipped configs use.

Needs no OpenMMLab. In reading order: `sources` says where a data set comes from and
what a complete copy holds, `download` and `unpack` bring it in, `camvid` converts, `demo`
generates, `layout` counts what is there, `prepare` joins them.
"""

from .demo import make_demo
from .layout import Report, check
from .prepare import prepare
from .sources import SOURCES, Source, Split

__all__ = ['SOURCES', 'Report', 'Source', 'Split', 'check', 'make_demo', 'prepare']
