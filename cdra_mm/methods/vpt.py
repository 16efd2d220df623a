"""Visual prompt tuning: learnt tokens beside those of the image.

Jia et al., *Visual Prompt Tuning*, ECCV 2022. With x_i the class token and E_i the patch
tokens behind block i, and P the p prompts (Section 3.2, Eqs. 4 and 5, and 7):

    shallow   [x_1, Z_1, E_1] = L_1([x_0, P, E_0]),   [x_i, Z_i, E_i] = L_i([x_i-1, Z_i-1, E_i-1])
    deep      [x_i, _,   E_i] = L_i([x_i-1, P_i-1, E_i-1])

The paper's code puts them between class token and patches, after the dropout of the
embedding. Here they stand at the end: a block that knows no positions of its own treats
tokens as a set, so that the order changes nothing. A backbone whose blocks do know
positions (relative or rotary ones, windows) is refused; the paper's variant for Swin, with
prompts in every window, is not built.

That code (KMnP/vpt) trains by SGD with momentum 0.9, with rate, weight decay and number of prompts
chosen for each task, keeps the frozen encoder in evaluation mode (no dropout, no drop path) and
starts the head's bias at -4.6; its final runs on FGVC train on train.json alone. Here all rows are
trained alike, with 10 prompts; ``--final`` on FGVC takes train and val (docs/methods.md).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from cdra_mm.core import Part, Plan, find_layers, find_targets, layer_width
from cdra_mm.errors import PlanError
from cdra_mm.settings import count, probability

from .base import Method, Request
from .prompts import InputPrompts, Prompts

__all__ = ['VPTDeep', 'VPTShallow']


@dataclass(frozen=True)
class _VPT(Method):
    """What both have in common.

    Attributes:
        num_prompts: p; the paper searches it for each task.
        dropout: Probability with which an entry of a prompt is dropped in training. The
            default of the paper's code is 0.
    """

    num_prompts: int = count(10)
    dropout: float = probability(0.0)

    def plan(self, request: Request) -> Plan | None:
        """Prompts, nothing else. See `Method.plan`.

        Raises:
            PlanError: If the blocks know positions, or no patch embedding is found.
        """
        backbone = request.backbone
        _check_sets(backbone)
        parts = tuple(self._part(backbone, place) for place in self._places(request))
        return request.record(self, parts=parts)

    @abstractmethod
    def _places(self, request: Request) -> list[str]:
        """Paths of the blocks that get prompts; '' for the input of the first."""

    def _part(self, backbone: nn.Module, place: str) -> Part:
        width = layer_width(backbone, place or find_layers(backbone)[0])
        bound = math.sqrt(6 / (_patch_inputs(backbone) + width))
        kind = Prompts.kind if place else InputPrompts.kind
        sizes: dict[str, Any] = {'num_prompts': self.num_prompts, 'width': width}
        sizes |= {'dropout': float(self.dropout), 'bound': bound}
        name = f'{place}.{kind}' if place else kind
        return Part(name, kind, sizes, self.num_prompts * width)


@dataclass(frozen=True)
class VPTShallow(_VPT):
    """The row "VPT-Shallow": p prompts before the first block, carried through all. ``p E``."""

    name: ClassVar[str] = 'vpt_shallow'

    def _places(self, request: Request) -> list[str]:
        request.layers()  # prompts go through the blocks: one has to be left
        return ['']


@dataclass(frozen=True)
class VPTDeep(_VPT):
    """The row "VPT-Deep": p prompts of its own before every block. ``L p E`` for L blocks."""

    name: ClassVar[str] = 'vpt_deep'

    def _places(self, request: Request) -> list[str]:
        return request.layers()


def _check_sets(backbone: nn.Module) -> None:
    """Checks that the blocks treat tokens as a set.

    Every parameter of such a block acts on each token alone (`find_targets` knows them), and no
    buffer is a table. What a block is called with is seen in the first forward pass only.

    Raises:
        PlanError: See `_VPT.plan`.
    """
    known = {target.path for target in find_targets(backbone).values()}
    for path in find_layers(backbone):
        block = backbone.get_submodule(path)
        if isinstance(block, nn.ModuleList):
            raise PlanError(
                f'{path}: the blocks of this {type(backbone).__name__} are lists of parts, which '
                'are called one by one, and nothing is called with the tokens of a block: use '
                'another method than prompts for it'
            )
        tables = [name for name, _ in block.named_parameters(path) if name not in known]
        tables += [name for name, buffer in block.named_buffers(path) if buffer.dim() > 1]
        if tables:
            raise PlanError(
                f'{tables[0]}: the blocks of this {type(backbone).__name__} know the positions of '
                'their tokens (relative or rotary ones, windows), and a prompt has none: use '
                'another method for this backbone'
            )
        if isinstance(block, nn.TransformerEncoderLayer) and not block.self_attn.batch_first:
            raise PlanError(f'{path} takes tokens first: prompts need blocks on [B, N, E]')


def _patch_inputs(backbone: nn.Module) -> int:
    """Numbers that the patch embedding makes a token of, ``3 patch^2``."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            return math.prod(module.weight.shape[1:])
    raise PlanError(
        f'{type(backbone).__name__} embeds its patches by no convolution: the scale of the prompts '
        'is taken from it'
    )
