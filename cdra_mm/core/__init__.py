"""The method, on plain torch: scores, masks, blocks, ranks, plans, adapters.

Read in the order of the data:

========================  ==============================================
`families`                where each family of transformers holds its weights
`targets`, `exclusion`    which weights compete, and their names
`scores`, `batch_scores`  Eq. 3: mean squared per-sample gradients
`parameter_watch`         which operation uses a weight, and its scored form
`scored_ops`              the operations that square in their backward
`square_sink`             where they add the squares up
`sample_check`            whether these are of one sample each
`one_by_one`              slow and exact: what has no scored form
`squares`                 how the squares are added up, by device
`square_kernel`           the Triton kernel for it
`selection`, `threads`    the global top-k, on one thread
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
`fingerprints`            which base weights a plan or an adapter belongs to
`files`, `loading`        adapter files: what they hold, and how a model takes them
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
from .files import save_adapter
from .fingerprints import base_state, digests_of, fingerprint, fingerprint_of
from .loading import load_adapter
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
    'base_state',
    'block_width',
    'build_adapters',
    'compact',
    'count_parameters',
    'digests_of',
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
