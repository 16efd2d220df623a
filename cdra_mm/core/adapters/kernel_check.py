"""Whether the kernels of `block_ops` compute what torch does, seen by running them once."""

from __future__ import annotations

import torch
from torch import Tensor

from ..flat_layout import begins_of
from .block_kernels import write_blocks
from .gradient_kernels import PROGRAMS, write_factor_gradients
from .joint_blocks import vector_begins

__all__ = ['check_kernels']


def check_kernels(device: torch.device) -> None:
    """Runs all kernels once on small whole numbers, which no type rounds.

    Raises:
        RuntimeError: If one computes something else than torch does.
    """
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        _check(device)


def _check(device: torch.device) -> None:
    generator, cpu = torch.Generator().manual_seed(0), torch.device('cpu')

    def numbers(*shape: int) -> Tensor:
        return torch.randint(-1, 2, shape, generator=generator, device=cpu).float().to(device)

    # More ranks than a product takes, more than a tile.
    weight, down, up = numbers(80, 96), numbers(17, 70), numbers(66, 17)
    rows, cols = (torch.randperm(n, generator=generator, device=cpu) for n in weight.shape)
    rows, cols = rows.to(device), cols.to(device)
    rows, cols = rows[:66].contiguous(), cols[:70].contiguous()
    flat = weight.flatten().bfloat16()
    write_blocks(flat, [weight], [down, up], [rows, cols], [1], [2.0])
    expected = weight.clone()
    expected[rows[:, None], cols] += 2 * (up @ down)
    _compare('copies', flat.float(), expected.flatten())

    # So many tokens that terms are loaded more than once; few programs have products in turn.
    dy, x = numbers(2112, 80), numbers(2112, 96)
    begins = begins_of([down.numel(), up.numel()])
    flat = torch.empty(begins[-1], dtype=torch.float32, device=device)
    gradient = 2 * dy[:, rows].t() @ x[:, cols]
    wanted = torch.cat([(up.t() @ gradient).flatten(), (gradient @ down.t()).flatten()])
    columns = torch.cat([x[:, cols], numbers(2112, vector_begins([70])[-1] - 70)], 1)
    for dtype, taken, at, programs in (
        (torch.bfloat16, columns, (0,), 8),
        (torch.float32, x, (), PROGRAMS),
    ):
        given = dy.to(dtype), taken.to(dtype), at, [down, up], [rows, cols], [2.0]
        write_factor_gradients(flat, *given, programs)
        found = torch.cat([flat[: down.numel()], flat[begins[1] :][: up.numel()]])
        _compare('gradients', found, wanted)


def _compare(what: str, found: Tensor, right: Tensor) -> None:
    if not torch.equal(found, right):
        raise RuntimeError(f'its {what} are off by up to {(found - right).abs().max().item()}')
