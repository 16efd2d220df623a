"""The method, on plain torch: scores, masks, blocks, ranks, plans, adapters.

Read in the order of the data; a room imports only those above it:

=============  ===============================================================
`model`        the backbone: families, targets, digests
`scoring`      Eq. 3: scores of every weight
`planning`     selection, Eq. 4, Eq. 7, the budget: from scores to a plan
`adapters`     Eq. 6: what trains a plan, and its merge
`artifacts`    adapter files, named adapters
=============  ===============================================================
"""

from cdra_mm.errors import (
    CDRAError,
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    PlanError,
    ScoreError,
)
from cdra_mm.storage.writing import write_atomically, write_folder, write_text

from .adapters.adapted import adapters, count_parameters, plan_of, trained_whole
from .adapters.adapter import Adapter, CallAdapter, ParameterAdapter, register_kind
from .adapters.apply import apply_plan, freeze_rest
from .adapters.merging import merge_adapters, remove_adapters, unmerge_adapters
from .adapters.sharding import average_gradients, shard_base
from .adapters.small_base import quantize_base, restore_base
from .artifacts.adapter_saving import save_adapter
from .artifacts.loading import load_adapter
from .artifacts.multi_task import MultiTask
from .artifacts.named_adapters import NamedAdapters
from .artifacts.state_keys import build_adapters
from .artifacts.task_files import TaskFile, read_task, save_task
from .model.digests import digests_of, fingerprint, fingerprint_of
from .model.own_state import base_state
from .model.targets import Target, find_targets, resolve
from .model.transformer_layers import find_layers, layer_width
from .planning.compaction import compact
from .planning.making import make_plan, plan_from_masks
from .planning.plan import Block, Part, Plan, SparseMatrix, Vector
from .planning.ranks import dynamic_rank
from .planning.selection import select
from .scoring.scores import estimate_scores

find_blocks, block_width = find_layers, layer_width  # their names in earlier releases

__all__ = [
    'Adapter',
    'Block',
    'CDRAError',
    'CallAdapter',
    'CheckpointError',
    'ConfigError',
    'DataError',
    'DivergedError',
    'MultiTask',
    'NamedAdapters',
    'ParameterAdapter',
    'Part',
    'Plan',
    'PlanError',
    'ScoreError',
    'SparseMatrix',
    'Target',
    'TaskFile',
    'Vector',
    'adapters',
    'apply_plan',
    'average_gradients',
    'base_state',
    'block_width',
    'build_adapters',
    'compact',
    'count_parameters',
    'digests_of',
    'dynamic_rank',
    'estimate_scores',
    'find_blocks',
    'find_layers',
    'find_targets',
    'fingerprint',
    'fingerprint_of',
    'freeze_rest',
    'layer_width',
    'load_adapter',
    'make_plan',
    'merge_adapters',
    'plan_from_masks',
    'plan_of',
    'quantize_base',
    'read_task',
    'register_kind',
    'remove_adapters',
    'resolve',
    'restore_base',
    'save_adapter',
    'save_task',
    'select',
    'shard_base',
    'trained_whole',
    'unmerge_adapters',
    'write_atomically',
    'write_folder',
    'write_text',
]
