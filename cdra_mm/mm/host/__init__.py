"""What is used of OpenMMLab beyond its public interface: every private name, and every patch.

Nothing else in this package reads a name of theirs that begins with an underscore, overrides one,
or puts a function or an attribute of theirs out of its place; `tests/mm/test_host.py` holds that.

============================  ====================================================
`signatures`                  how a name is looked up and compared; the error
`known_names`                 the table: each name with what it is used for
`runner_parts`                the runner, its loops, hooks, optimizer and config
`checkpoint_loaders`          how mmengine reads checkpoint files
`model_patches`               a model for a while, or for good, otherwise than it is
`data_wrapping`               pipelines and batches of data sets
`mmpretrain_names`,           classes of theirs with a step opened to ours; these two
`mmseg_names`                 load their package
============================  ====================================================

Importing it checks what `known_names` says of mmengine; the other packages are checked where they
are first used. A release in which one of these names is gone, or takes other arguments, ends with
`HostError` and the name, before anything is done.
"""

from .known_names import require

__all__ = ['require']

require('mmengine')
