"""How many operations a training step launches, and scoring: what a GPU pays for, without one.

Every operation that reaches the device's own kernels is one launch; those that only look at a
tensor differently, or take memory, are none. Of ours the gradients of a layer's factors are two;
the copies of all weights count as one, though they are a few more. It is counted on a CPU, with
the product of a GPU (`choose_product`); a GPU's own libraries may differ by a few.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .candidates import Candidates
from .case import Case
from .compared_models import REFERENCE, Builder
from .launch_counter import LaunchCounter
from .peers import quiet
from .scoring_launches import count_scoring
from .step import step_builders

__all__ = ['builders_by_product', 'compare_launches', 'count_step']


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
    """Launches of a training step: the frozen limit, ours, LoRA, full fine-tuning; of scoring.

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
        for name, counter in count_scoring(case).items():
            found[name] = {'launches': counter.total(), 'by_operation': counter}
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
