"""Seconds of scoring and planning a few blocks of a large backbone, for all of it by extrapolation.

The backbone stands on the meta device. Its first blocks are made for real with random weights, and
run on random tensors of the shapes that they have inside the backbone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from cdra_mm.core import estimate_scores, find_layers, make_plan
from cdra_mm.errors import ConfigError

from .estimate import Images
from .synthetic_scores import synthetic_scores

__all__ = ['BlockTime', 'time_blocks']

REPEATS = 3  # of which the quickest counts
Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class BlockTime:
    """Measured seconds.

    Attributes:
        blocks: Blocks that were made.
        depth: Blocks of the backbone.
        batch: Images.
        dtype: Of the weights.
        device: Where.
        backward: An ordinary forward and backward that passes gradients to the input.
        scoring: Scoring a batch.
        planning: A plan within a budget.
    """

    blocks: int
    depth: int
    batch: int
    dtype: str
    device: str
    backward: float
    scoring: float
    planning: float

    def text(self, num_samples: int) -> str:
        """What was measured, and what follows for the backbone if each block takes the same."""
        factor = self.depth / self.blocks
        steps = -(-num_samples // self.batch)
        return (
            f'measured: {self.blocks} of {self.depth} blocks, batch {self.batch}, {self.dtype}, '
            f'{self.device}, {torch.get_num_threads()} threads: forward and backward of the frozen '
            f'blocks {self.backward:.2f} s, scoring a batch {self.scoring:.2f} s, planning '
            f'{self.planning:.2f} s\n'
            f'extrapolated to {self.depth} blocks: scoring {num_samples} samples '
            f'{factor * steps * self.scoring:,.0f} s, planning {factor * self.planning:,.0f} s'
        )


def time_blocks(
    backbone: nn.Module, images: Images, *, blocks: int, batch: int, share: float, device: str
) -> BlockTime:
    """Times the first blocks of a backbone.

    Args:
        backbone: On the meta device, plain.
        images: Makes its input there.
        blocks: How many of its blocks.
        batch: Images.
        share: Trainable share of the weights.
        device: ``'cpu'`` or ``'cuda'``.

    Raises:
        ConfigError: If it has fewer blocks, or they cannot be run one after the other.
    """
    paths = find_layers(backbone)
    if not 1 <= blocks <= len(paths):
        raise ConfigError(f'{blocks} blocks to time: expected 1 to {len(paths)}, the depth')
    calls = _calls(backbone, [backbone.get_submodule(path) for path in paths], images(batch))
    generator = torch.Generator(device).manual_seed(0)
    chain = nn.ModuleList()
    for path in paths[:blocks]:
        block = copy.deepcopy(backbone.get_submodule(path)).to_empty(device=device)
        for tensor in (*block.parameters(), *block.buffers()):
            if tensor.is_floating_point():
                tensor.data.normal_(0, 0.02, generator=generator)
        chain.append(block.eval().requires_grad_(False))
    (tokens, *rest), kwargs = tree_map(lambda value: _real(value, device, generator), calls[0])

    def losses(model: nn.Module, x: Tensor) -> Tensor:
        for block in chain:
            x = block(x, *rest, **kwargs)
        return x.flatten(1).float().square().mean(1)

    def backward() -> None:
        losses(chain, tokens.requires_grad_(True)).sum().backward()

    try:
        backward()
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f'the blocks of {type(backbone).__name__} do not run one after the other '
            f'({type(error).__name__}: {error}): leave --time-blocks out'
        ) from error
    clock = _Clock(device)
    single = min(clock.seconds(backward) for _ in range(REPEATS))
    # The first batch is looked at once more before it is scored.
    ends: list[float] = []
    batches = [tokens.detach()] * (REPEATS + 1)
    scores = estimate_scores(chain, batches, losses, progress=lambda _: ends.append(clock.now()))
    steady = min(end - begin for begin, end in zip(ends, ends[1:], strict=False))
    # Gradients of random weights are of one size, as no real ones are.
    scores = synthetic_scores({n: tuple(s.shape) for n, s in scores.items()}, device=device)
    budget = int(share * sum(score.numel() for score in scores.values()))
    planning = clock.seconds(lambda: make_plan(scores, budget_params=budget))
    dtype = str(next(chain.parameters()).dtype).removeprefix('torch.')
    return BlockTime(blocks, len(paths), batch, dtype, device, single, steady, planning)


def _calls(backbone: nn.Module, blocks: list[nn.Module], images: Tensor) -> list[Call]:
    """What the backbone calls its blocks with, on the meta device."""
    seen: list[Call] = []
    hooks = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
        )
        for block in blocks
    ]
    try:
        with torch.no_grad():
            backbone(images)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _real(value: Any, device: str, generator: torch.Generator) -> Any:
    """A random tensor in the place of one on the meta device."""
    if not isinstance(value, Tensor):
        return value
    made = torch.empty(value.shape, dtype=value.dtype, device=device)
    return made.normal_(generator=generator) if made.is_floating_point() else made.zero_()


class _Clock:
    """Seconds of a device; of one CPU thread its own, whatever else the machine does."""

    def __init__(self, device: str) -> None:
        self.device = device
        alone = device == 'cpu' and torch.get_num_threads() == 1
        self._read = time.process_time if alone else time.perf_counter

    def now(self) -> float:
        if self.device == 'cuda':
            torch.cuda.synchronize()
        return self._read()

    def seconds(self, run: Callable[[], Any]) -> float:
        begin = self.now()
        run()
        return self.now() - begin
