"""What a training step costs the host: the time of an eager step on a GPU that waits for it.

Measured on a CPU, with the product of a GPU (`choose_product`), on models of full depth and so
little width that arithmetic takes next to nothing. Our kernels are launched as nothing, so what
Python does for a launch counts, and the launch itself does not: `launches` counts those.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
    with quiet(), _kernels_that_do_nothing() as found:
        builders: dict[str, Builder] = builders_by_product(case, blocks, peers, compared.skipped)
        for name in [name for name in builders if name.endswith(COPIED) and not found]:
            del builders[name]
            compared.skipped[name] = 'Triton is not installed: pip install triton'
        models: dict[str, nn.Module] = {n: b(case.make_model()) for n, b in builders.items()}
        compared.time({n: Step(case, model, batch, fused=True) for n, model in models.items()})
    return compared.record


class _Nothing:
    """In the place of a kernel."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: None


@contextmanager
def _kernels_that_do_nothing() -> Iterator[bool]:
    """Inside, our kernels seem to run on a CPU; whether Triton is there, without which not."""
    if find_spec('triton') is None:
        yield False
        return
    from cdra_mm.core.adapters import block_kernels

    def seem_to_run(device: torch.device) -> bool:
        return True

    with (
        patch.object(block_ops, 'kernels_run', seem_to_run),
        patch.object(block_kernels, '_write_tiles', _Nothing()),
        patch.object(block_kernels, '_factor_tiles', _Nothing()),
    ):
        yield True
