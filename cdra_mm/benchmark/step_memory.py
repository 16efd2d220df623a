"""What a training step holds at its peak, counted without running it.

The step runs on tensors without values (torch's fake tensors), so a large model at a large size
takes seconds; the bytes are those that the same step holds on a CPU, to the byte. What a GPU's
allocator rounds up, and scratch inside of kernels, are not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cdra_mm.sizing.live_bytes import LiveBytes

from .candidates import Candidates
from .case import Case
from .compared_models import REFERENCE
from .launches import builders_by_product
from .peers import quiet

__all__ = ['compare_memory', 'peak_of_step']

ADAMW = 2  # moments of each trained number


def peak_of_step(case: Case, model: nn.Module) -> int:
    """Bytes of activations and gradients at the peak of a forward and backward.

    Args:
        case: The setting.
        model: Its parameters do not count; it loses its values.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    _lose_values(model, mode)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    images, labels = (mode.from_tensor(tensor) for tensor in case.make_batch())
    with mode, LiveBytes() as live:
        loss = case.losses(model, (images, labels)).mean()
        grads = torch.autograd.grad(loss, trained, allow_unused=True)
    del grads
    return live.peak


def _lose_values(model: nn.Module, mode: FakeTensorMode) -> None:
    """Puts tensors without values in the place of all parameters, in place."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                wanted = parameter.requires_grad
                fake = nn.Parameter(mode.from_tensor(parameter.detach()), wanted)
                module._parameters[name] = made.setdefault(id(parameter), fake)


def compare_memory(
    case: Case, *, blocks: Sequence[str] = ('paper', 'spt'), peers: Sequence[str] = ('peft',)
) -> dict[str, Any]:
    """Bytes of a training step with AdamW: the frozen limit, ours, LoRA, full fine-tuning.

    Each plain, and with its layers' activations computed again in the backward.

    Args:
        case: The setting.
        blocks: Block sizes of ours, see `make_block_plan`.
        peers: Which peers to compare with.
    """
    compared = Candidates(case, 'memory', {'frozen_limit': REFERENCE}, blocks=list(blocks))
    with quiet():
        for name, build in builders_by_product(case, blocks, peers, compared.skipped).items():
            for again in (False, True):
                model = build(case.make_model()).train()
                if again:
                    model.set_grad_checkpointing()  # type: ignore[operator]
                own = sum(p.nbytes for p in model.parameters())
                state = ADAMW * sum(p.nbytes for p in model.parameters() if p.requires_grad)
                step = peak_of_step(case, model)
                compared.found[f'{name}, recomputed' if again else name] = {
                    'weight_bytes': own,
                    'optimizer_bytes': state,
                    'step_bytes': step,
                    'total_bytes': own + state + step,
                }
    return compared.record
