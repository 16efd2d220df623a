"""Time and memory of selection and planning for large models, on synthetic scores."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from cdra_mm.core import make_plan, select
from cdra_mm.core.planning.by_gradient import plan_by_gradient
from cdra_mm.sizing.synthetic_scores import synthetic_scores

from .memory import in_child, peak_above_rest
from .timing import is_out_of_memory

__all__ = ['SHAPES', 'compare_planning']

GAMMA, BUDGET = 0.01, 0.005  # of the competing entries


def _shapes(depth: int, width: int, ffn: dict[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the competing tensors of a ViT."""
    square = ('qkv.weight:q', 'qkv.weight:k', 'qkv.weight:v', 'proj.weight')
    shapes: dict[str, tuple[int, ...]] = {f'attn.{name}': (width, width) for name in square}
    shapes |= {f'mlp.{name}': sides for name, sides in ffn.items()}
    shapes |= {'norm1.weight': (width,), 'attn.qkv.bias': (3 * width,), 'ls1.gamma': (width,)}
    return {f'blocks.{block}.{name}': s for block in range(depth) for name, s in shapes.items()}


def _vit(depth: int, width: int) -> dict[str, tuple[int, ...]]:
    ffn = {'fc1.weight': (4 * width, width), 'fc2.weight': (width, 4 * width)}
    return _shapes(depth, width, ffn)


def _dinov2_giant() -> dict[str, tuple[int, ...]]:
    gated = dict.fromkeys(('w12.weight:w1', 'w12.weight:w2'), (4096, 1536))
    return _shapes(40, 1536, {**gated, 'w3.weight': (1536, 4096)})


def _dinov3_7b() -> dict[str, tuple[int, ...]]:
    gated = dict.fromkeys(('fc1_g.weight', 'fc1_x.weight'), (8192, 4096))
    return _shapes(40, 4096, {**gated, 'fc2.weight': (4096, 8192)})


# ViT-B, ViT-L, DINOv2's ViT-g and DINOv3's ViT-7B.
SHAPES: dict[str, Callable[[], dict[str, tuple[int, ...]]]] = {
    '86M': lambda: _vit(12, 768),
    '304M': lambda: _vit(24, 1024),
    '1.1B': _dinov2_giant,
    '6.7B': _dinov3_7b,
}


def compare_planning(
    entries: str,
    *,
    device: str = 'cpu',
    repeats: int = 3,
    seed: int = 0,
    threads: int | None = None,
) -> dict[str, Any]:
    """Seconds and bytes of `select` and of plans for a model of so many entries.

    `plan_by_gradient` is given the scores for its gradients: it takes as long for any.

    Args:
        entries: Key of `SHAPES`.
        device: Where the scores lie.
        repeats: Timed runs, of which the median counts.
        seed: Seed of the scores.
        threads: Threads of PyTorch, None for its default.
    """
    record: dict[str, Any] = {
        'benchmark': 'planning',
        'entries': entries,
        'device': device,
        'gamma': GAMMA,
        'budget_share': BUDGET,
        'repeats': repeats,
        'candidates': {},
        'skipped': {},
    }
    shapes = SHAPES[entries]()
    inputs = (shapes, device, repeats, seed, threads)
    try:
        if device == 'cuda':
            record |= measure_planning(*inputs)
        else:
            record |= in_child(measure_planning, *inputs)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        record['skipped'][entries] = f'out of memory: {error}'.partition('\n')[0]
    return record


def measure_planning(
    shapes: dict[str, tuple[int, ...]], device: str, repeats: int, seed: int, threads: int | None
) -> dict[str, Any]:
    """The measured part; on a CPU it needs a process of its own for the memory."""
    if threads:
        torch.set_num_threads(threads)
    scores = synthetic_scores(shapes, seed=seed, device=device)
    total = sum(score.numel() for score in scores.values())
    operations: dict[str, Callable[[], Any]] = {
        'select gamma': lambda: select(scores, gamma=GAMMA),
        'make_plan gamma': lambda: make_plan(scores, gamma=GAMMA),
        'make_plan budget': lambda: make_plan(scores, budget_params=int(BUDGET * total)),
        'plan_by_gradient': lambda: plan_by_gradient(scores, int(BUDGET * total)),
    }
    candidates: dict[str, dict[str, Any]] = {}
    for name, operation in operations.items():
        candidates[name] = {'peak_bytes_above_rest': peak_above_rest(operation, device)}
        seconds = [_seconds(operation, device) for _ in range(repeats)]
        candidates[name] |= {'seconds': median(seconds), 'seconds_all': seconds}
    return {
        'num_entries': total,
        'score_bytes': 4 * total,
        'largest_tensor_bytes': 4 * max(score.numel() for score in scores.values()),
        'candidates': candidates,
    }


def _seconds(operation: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    operation()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start
