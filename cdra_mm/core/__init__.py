"""The method, on plain torch: scores, masks, blocks, ranks, plans, adapters.

Read in the order of the data:

========================  ==============================================
`families`                where each family of transformers holds its weights
`targets`                 which weights compete, and their names
`scores`                  Eq. 3: mean squared per-sample gradients
`parameter_watch`         which operation uses a weight, and its scored form
`scored_ops`              the operations that square in their backward
`squares`                 how the squares are added up, by device
`square_kernel`           the Triton kernel for it
`selection`               the global top-k
`compaction`              Eq. 4: rows and columns of the compact block
`ranks`                   Eq. 7: its rank
`ablations`               what the paper's ablations change about a matrix
`treatment`               how a matrix is trained: a block, LoRA, single entries
`plan`, `planning`        the record of it all, and how it is made
`sizes`                   what each target adds to a plan, at any threshold
`budget`, `trials`        the threshold whose plan fits a budget: at once, or by trying
`adapter`                 what an adapter is, and which kinds there are
`low_rank`                Eq. 6: the low-rank adapter of a compact block
`compact_linear`          its forward and backward
`entries`                 single trained entries
`layers`                  the modules that carry adapters
`attention`               attention between adapted or scored projections
`adapt`                   plan + model: apply, merge, unmerge
`state_keys`              adapters built from the keys of a state dict
`files`, `fingerprints`   adapter files, and which base they belong to
`named_adapters`          several adapters on one base
`writing`, `leftovers`    files that are there whole or not at all
========================  ==============================================
"""

from .adapt import (
    adapters,
    apply_plan,
    count_parameters,
    freeze_rest,
    merge_adapters,
    plan_of,
    remove_adapters,
    trained_whole,
    unmerge_adapters,
)
from .adapter import Adapter, CallAdapter, ParameterAdapter, register_kind
from .compaction import compact
from .errors import (
    CDRAError,
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    PlanError,
    ScoreError,
)
from .files import load_adapter, save_adapter
from .fingerprints import fingerprint, fingerprint_of
from .named_adapters import NamedAdapters
from .plan import Block, Part, Plan, SparseMatrix, Vector
from .planning import make_plan, plan_from_masks
from .ranks import dynamic_rank
from .scores import estimate_scores
from .selection import select
from .state_keys import build_adapters
from .targets import Target, block_width, find_blocks, find_targets, resolve
from .writing import write_atomically, write_folder, write_text

__all__ = [
    'Adapter',
    'Block',
    'CDRAError',
    'CallAdapter',
    'CheckpointError',
    'ConfigError',
    'DataError',
    'DivergedError',
    'NamedAdapters',
    'ParameterAdapter',
    'Part',
    'Plan',
    'PlanError',
    'ScoreError',
    'SparseMatrix',
    'Target',
    'Vector',
    'adapters',
    'apply_plan',
    'block_width',
    'build_adapters',
    'compact',
    'count_parameters',
    'dynamic_rank',
    'estimate_scores',
    'find_blocks',
    'find_targets',
    'fingerprint',
    'fingerprint_of',
    'freeze_rest',
    'load_adapter',
    'make_plan',
    'merge_adapters',
    'plan_from_masks',
    'plan_of',
    'register_kind',
    'remove_adapters',
    'resolve',
    'save_adapter',
    'select',
    'trained_whole',
    'unmerge_adapters',
    'write_atomically',
    'write_folder',
    'write_text',
]
