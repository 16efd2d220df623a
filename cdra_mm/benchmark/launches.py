"""How many operations a training step launches: what a GPU pays for, counted without one.

Every operation that reaches the device's own kernels is one launch; those that only look at a
tensor differently, or take memory, are none. An operation of ours is one: its kernel, though the
copies of all weights are a few more. It is counted on a CPU, with the product of a GPU
(`choose_product`); a GPU's own libraries may differ by a few.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .candidates import Candidates
from .case import Case
from .compared_models import REFERENCE, Builder
from .peers import quiet
from .step import step_builders

__all__ = ['LaunchCounter', 'builders_by_product', 'compare_launches', 'count_step']

# Names that take memory or look at it, though their schemas do not say so.
NO_KERNEL = frozenset(
    'empty empty_like empty_strided new_empty new_empty_strided _unsafe_view _reshape_alias '
    'lift_fresh detach'.split()
)


class LaunchCounter(TorchDispatchMode):
    """Counts the operations that run a kernel.

    Attributes:
        counts: Number of launches by the operation's name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Counts one operation and runs it; what it calls inside is part of it."""
        name = func._schema.name.rpartition('::')[2]
        if name not in NO_KERNEL and not _is_view(func):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def _is_view(func: Any) -> bool:
    """Whether what an operation returns is another look at its input, by its schema."""
    aliases = [r.alias_info for r in func._schema.returns]
    return bool(aliases) and all(alias is not None and not alias.is_write for alias in aliases)


def count_step(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Counter[str]]:
    """Launches of a forward and of its backward.

    Args:
        model: Its gradients are dropped before.
        loss: Runs the forward.

    Returns:
        Counts by operation under ``forward`` and ``backward``.
    """
    loss().backward()  # what is made once is made now
    model.zero_grad(set_to_none=True)
    with LaunchCounter() as forward:
        value = loss()
    with LaunchCounter() as backward:
        value.backward()
    return {'forward': forward.counts, 'backward': backward.counts}


def compare_launches(
    case: Case, *, blocks: Sequence[str] = ('paper', 'spt'), peers: Sequence[str] = ('peft',)
) -> dict[str, Any]:
    """Launches of a training step: the frozen limit, ours, LoRA, full fine-tuning.

    Args:
        case: The setting.
        blocks: Block sizes of ours, see `make_block_plan`.
        peers: Which peers to compare with.
    """
    compared = Candidates(case, 'launches', {'frozen_limit': REFERENCE}, blocks=list(blocks))
    found, batch = compared.found, case.make_batch()
    with quiet():
        for name, build in builders_by_product(case, blocks, peers, compared.skipped).items():
            model = build(case.make_model()).train()
            counts = count_step(model, lambda model=model: case.losses(model, batch).mean())  # type: ignore[misc]
            totals = {direction: counter.total() for direction, counter in counts.items()}
            launches = sum(totals.values())
            found[name] = {**totals, 'launches': launches, 'by_operation': counts}
    for entry in found.values():
        entry['ratio_vs_frozen_limit'] = entry['launches'] / found[REFERENCE]['launches']
        entry['ratio_vs_full'] = entry['launches'] / found['full']['launches']
    return compared.record


def builders_by_product(
    case: Case, blocks: Sequence[str], peers: Sequence[str], skipped: dict[str, str]
) -> dict[str, Builder]:
    """The candidates of `step_builders`, ours by both products, beside peft's LoRA alone."""
    kept = [peer for peer in peers if peer == 'peft']
    return step_builders(case, blocks, kept, skipped, False, ('copied', 'factored'))
