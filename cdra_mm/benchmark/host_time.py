"""What a training step costs the host: the time of an eager step on a GPU that waits for it.

Measured on a CPU, with the product of a GPU (`choose_product`), on models of full depth and so
little width that arithmetic takes next to nothing. Our kernels are compiled for a GPU that need not
be there, and their arguments are bound as in every call, but nothing is launched: what Python does
counts, and the launch itself does not: `launches` counts those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from cdra_mm.core.adapters import block_ops

from .candidates import Candidates
from .case import Case, build_narrow
from .compared_models import FULL, LORA, REFERENCE, Builder
from .launches import builders_by_product
from .peers import quiet
from .step import Step

__all__ = ['compare_host']

IMAGE_SIZE = 32
CAPABILITY = 90  # an H100's
COPIED = ', copied'  # how `builders_by_product` calls what our kernels run for


def compare_host(
    case: Case,
    *,
    blocks: Sequence[str] = ('paper', 'spt'),
    peers: Sequence[str] = ('peft',),
    build: Any = build_narrow,
) -> dict[str, Any]:
    """Times of a step in which the device has nothing to do.

    Args:
        case: Gives the model's name and the rounds; the step is one of fp32 on a CPU, of one image.
        blocks: Block sizes of ours, see `make_block_plan`.
        peers: Which peers to compare with.
        build: Makes the models, ``build(name, image_size)``.
    """
    case = replace(
        case, image_size=IMAGE_SIZE, batch=1, dtype='fp32', device='cpu', mode='eager', build=build
    )
    references = {'frozen_limit': REFERENCE, 'peft_lora': LORA, 'full': FULL}
    compared = Candidates(case, 'host', references, blocks=list(blocks))
    batch = case.make_batch()
    with quiet(), _kernels_that_are_not_launched() as found:
        builders: dict[str, Builder] = builders_by_product(case, blocks, peers, compared.skipped)
        for name in [name for name in builders if name.endswith(COPIED) and not found]:
            del builders[name]
            compared.skipped[name] = 'Triton is not installed: pip install triton'
        models: dict[str, nn.Module] = {n: b(case.make_model()) for n, b in builders.items()}
        compared.time({n: Step(case, model, batch, fused=True) for n, model in models.items()})
    return compared.record


class _NoGPU:
    """What Triton asks of a GPU's driver before it launches."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget('cuda', CAPABILITY, 32)


class _Unlaunched:
    """In the place of a kernel: all of a call but the launch."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        return partial(self.kernel.warmup, grid=grid)


@contextmanager
def _kernels_that_are_not_launched() -> Iterator[bool]:
    """Inside, our kernels seem to run on a CPU; whether Triton is there, without which not."""
    if find_spec('triton') is None:
        yield False
        return
    from triton.runtime import driver

    from cdra_mm.core.adapters import block_kernels

    def seem_to_run(device: torch.device) -> bool:
        return True

    with ExitStack() as stack:
        stack.enter_context(patch.object(block_ops, 'kernels_run', seem_to_run))
        # Not by `set_active`, which can be undone only where there is a GPU.
        stack.enter_context(patch.object(driver, '_active', _NoGPU()))
        for name in ('_write_tiles', '_factor_tiles'):
            kernel = _Unlaunched(getattr(block_kernels, name))
            stack.enter_context(patch.object(block_kernels, name, kernel))
        yield True
