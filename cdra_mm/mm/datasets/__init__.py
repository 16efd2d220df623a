"""Data sets that OpenMMLab lacks: VTAB-1k and FGVC in the layouts of the tuning papers.

=================  ==================================================================
`listed_images`    what both share: a split is a list (`cdra_mm.data.list_files`) with labels
`vtab`             VTAB-1k: 19 tasks, text lists
`fgvc`             FGVC: 5 sets, JSON lists
`class_names`      the names of VTAB-1k's classes, one text file a task
=================  ==================================================================
"""

from .fgvc import FGVC, FGVC_SETS
from .vtab import TASK_CLASSES, VTAB1k

__all__ = ['FGVC', 'FGVC_SETS', 'TASK_CLASSES', 'VTAB1k']
