"""Scoring one batch, beside one ordinary forward and backward and beside peers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cdra_mm.core import estimate_scores, find_targets

from .candidates import Candidates
from .case import Batch, Case
from .memory import in_child, peak_above_rest
from .peers import PEERS, Scorer, quiet
from .timing import is_out_of_memory

__all__ = [
    'REFERENCE',
    'TOLERANCE',
    'backward_of',
    'compare_scores',
    'whole_matrices',
    'worst_error',
]

REFERENCE, OURS = 'backward', 'ours'
# Largest deviation from ours that a peer may show, relative to a parameter's largest score. In
# bf16 the peers round each sample's gradient, which ours accumulates in fp32.
TOLERANCE = {'fp32': 1e-3, 'bf16': 0.1}


def compare_scores(
    case: Case, *, peers: Sequence[str] = tuple(PEERS), memory: bool = True
) -> dict[str, Any]:
    """Times, memory and agreement of scoring one batch.

    Args:
        case: The setting.
        peers: Keys of `PEERS`, others say nothing here; one that is not installed is skipped
            with a line.
        memory: Whether to measure memory, on a CPU in a process per candidate.

    Returns:
        A record of plain values; see `report`.
    """
    compared = Candidates(case, 'scores', {'backward': REFERENCE})
    candidates, skipped = compared.found, compared.skipped
    with quiet():
        model, batch = case.make_model(), case.make_batch()
        runs: dict[str, Callable[[], Any]] = {}
        runs[REFERENCE] = backward_of(case, model, batch)
        runs[OURS] = _ours(case, model, batch)
        expected = whole_matrices(runs[OURS]())
        score_bytes = sum(score.nbytes for score in expected.values())
        for peer in [PEERS[key] for key in peers if key in PEERS]:
            if peer.missing():
                skipped[peer.title] = f'{peer.package} is not installed: pip install {peer.package}'
                continue
            try:
                scorer = peer.build(case, model, batch, list(expected))
                error, covered = _agreement(scorer, expected)
            except Exception as problem:  # what a peer cannot do must not end the comparison
                reason = str(problem).partition('\n')[0]
                full = is_out_of_memory(problem)
                skipped[peer.title] = (
                    f'out of memory at batch {case.batch}' if full else f'fails: {reason}'
                )
                continue
            if error > TOLERANCE[case.dtype]:
                skipped[peer.title] = f'its scores differ from ours by {error:.1e}: not compared'
                continue
            runs[peer.title] = scorer
            candidates[peer.title] = {
                'covers': covered,
                'max_relative_error': error,
                'remark': peer.remark,
            }
        del expected
        candidates |= {name: {'covers': 1.0} for name in (REFERENCE, OURS)}
        compared.time(runs)
        for name in candidates if memory else ():
            with compared.fitting(f'memory of {name}'):
                candidates[name]['peak_bytes_above_rest'] = _peak(case, name, runs[name])
    if OURS in candidates:
        entry = candidates[OURS]
        entry['remark'] = 'all matrices, biases and norms of the blocks, one backward'
        peak = entry.get('peak_bytes_above_rest')
        other = candidates.get(REFERENCE, {}).get('peak_bytes_above_rest')
        if peak is not None and other is not None:
            # The scores are the result; what else ours holds beyond a backward is scratch. (That
            # peaks at its start, when every activation is held and no gradient is there yet.)
            entry |= {'score_bytes': score_bytes, 'scratch_bytes': peak - score_bytes - other}
    in_order = {name: candidates[name] for name in runs if name in candidates}
    return {**compared.record, 'candidates': in_order}


def backward_of(case: Case, model: nn.Module, batch: Batch) -> Callable[[], None]:
    """An ordinary forward and backward of the whole model."""
    model.requires_grad_(True)

    def run() -> None:
        case.losses(model, batch).sum().backward()
        model.zero_grad(set_to_none=True)

    return run


def _ours(case: Case, model: nn.Module, batch: Batch) -> Scorer:
    return lambda: estimate_scores(model, [batch], case.losses)


def whole_matrices(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores by parameter path: the parts of a fused matrix put together again."""
    parts: dict[str, list[Tensor]] = {}
    for name, score in scores.items():
        parts.setdefault(name.partition(':')[0], []).append(score)
    return {path: torch.cat(found) if len(found) > 1 else found[0] for path, found in parts.items()}


def worst_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest ``max |found - expected| / max expected`` over the parameters found."""
    return max(
        float((found[path] - expected[path]).abs().max() / expected[path].abs().max())
        for path in found
    )


def _agreement(scorer: Scorer, expected: Mapping[str, Tensor]) -> tuple[float, float]:
    """The worst error, and the share of the scored entries that the peer covers."""
    found = scorer()
    covered = sum(score.numel() for score in found.values())
    return worst_error(found, expected), covered / sum(s.numel() for s in expected.values())


def _peak(case: Case, name: str, run: Callable[[], Any]) -> int | None:
    if case.device == 'cuda':
        return peak_above_rest(run, case.device)
    peak: int | None = in_child(_peak_alone, case, name)
    return peak


def _peak_alone(case: Case, name: str) -> int | None:
    """Peak of one candidate; runs in a process of its own."""
    with quiet():
        model, batch = case.make_model(), case.make_batch()
        if name in (REFERENCE, OURS):
            make = backward_of if name == REFERENCE else _ours
            run: Callable[[], Any] = make(case, model, batch)
        else:
            peer = next(p for p in PEERS.values() if p.title == name)
            paths = dict.fromkeys(target.path for target in find_targets(model).values())
            run = peer.build(case, model, batch, list(paths))
        return peak_above_rest(run, case.device)
