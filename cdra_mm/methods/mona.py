"""Mona: an adapter that looks at neighbouring tokens (Yin et al., *5%>100%*, CVPR 2025).

    u = gamma * norm(x) + gamma_x * x                     its own norm, E channels
    h = down u + b                                        h channels, 64 in the paper
    f = h + (conv3(h) + conv5(h) + conv7(h)) / 3          depth-wise, on the grid of the tokens
    y = x + up drop(gelu(f + project(f))) + c             project: 1 x 1

One behind the attention of every block and one behind its FFN, each after the residual was
added. They do not merge. With ``z = x + attention(x)`` and the FFN's branch F, a block becomes

    z' = mona_1(z),   y = mona_2(z' + F(norm(z')))

The residual runs inside of the block, whose code is anybody's. So the block runs with the norm
before its FFN reading ``z'`` in the place of z, and what `mona_1` has changed is added to its
output: the same sum. It holds for blocks that norm before each branch; others are refused.

Where the released code (Leiyi-Hu/mona, Swin only) and this differ:

- *Class and register tokens*, which Swin has not, have no neighbours: for them f = h.
- The three convolutions run as one of 7 x 7, whose kernel is the mean of theirs.
- Initial values are the code's: norm 1 and 0, gamma 1e-6, gamma_x 1, `down` and `up` normal with
  standard deviation 0.02, convolutions as torch draws them. So **it starts near the base model but
  not at it**.
- The paper's configs train at 5 times the rate of full fine-tuning, 3e-4. The head aside,
  everything else is frozen, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdra_mm.core import CallAdapter, Part, Plan, layer_width, register_kind
from cdra_mm.core.adapters.low_rank import master_dtype
from cdra_mm.core.model.transformer_layers import attention_width
from cdra_mm.errors import PlanError
from cdra_mm.settings import count, probability

from .base import Method, Request
from .token_grid import TokenGrid, convolutions_in_front, forget_maps, grid_of, note_maps

__all__ = ['Mona', 'MultiCognitive']

KERNELS = (3, 5, 7)


@register_kind
class MultiCognitive(CallAdapter):
    """The two adapters of a block: index 0 of every parameter is behind the attention, 1 the FFN.

    Args:
        module: The block.
        width: E.
        bottleneck: h.
        dropout: Probability of dropping a hidden unit in training.
    """

    kind = 'mona'
    can_merge = False

    def __init__(self, module: nn.Module, width: int, bottleneck: int, dropout: float) -> None:
        super().__init__()
        attentions = [own for own in module.modules() if attention_width(own)]
        if not attentions or bottleneck < 1 or width != attention_width(attentions[0]):
            raise ValueError(f'{bottleneck} hidden units at a width of {width}')
        if not 0 <= dropout < 1:
            raise ValueError(f'dropout is {dropout}')
        if any(getattr(own, 'with_cp', False) for own in module.modules()):
            raise PlanError(
                'mona changes what a block computes in its middle, which the block cannot compute '
                'again by itself: switch with_cp off in the config of the backbone'
            )
        self.dropout = float(dropout)
        # In tuples: what they hold has owners of its own, and is no child of this one.
        self._block, self._attention = (module,), (attentions[0],)
        self._convolution: tuple[nn.Module, ...] = ()
        like = next(module.parameters())

        def parameter(*shape: int) -> nn.Parameter:
            zeros = torch.zeros(2, *shape, device=like.device, dtype=master_dtype(like))
            return nn.Parameter(zeros)

        self.norm_weight, self.norm_bias = parameter(width), parameter(width)
        self.gamma, self.gamma_x = parameter(width), parameter(width)
        self.down, self.down_bias = parameter(bottleneck, width), parameter(bottleneck)
        self.conv3, self.conv5, self.conv7 = (parameter(bottleneck, 1, k, k) for k in KERNELS)
        self.conv_bias = parameter(len(KERNELS), bottleneck)
        self.project, self.project_bias = parameter(bottleneck, bottleneck), parameter(bottleneck)
        self.up, self.up_bias = parameter(width, bottleneck), parameter(width)

    @staticmethod
    def count(width: int, bottleneck: int) -> int:
        """Parameters of both, ``2 ((2 h + 5) E + h^2 + 88 h)``."""
        return 2 * ((2 * bottleneck + 5) * width + bottleneck**2 + 88 * bottleneck)

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """See the head of this file."""
        for zero in (self.norm_bias, self.down_bias, self.up_bias):
            zero.zero_()
        for one in (self.norm_weight, self.gamma_x):
            one.fill_(1)
        self.gamma.fill_(1e-6)
        drawing: Any = dict(generator=generator, device=generator.device)
        for matrix in (self.down, self.up):
            matrix.copy_(0.02 * torch.randn(matrix.shape, **drawing))
        kernels = (self.conv3, self.conv5, self.conv7)
        drawn: list[tuple[Tensor, int]] = [(own, own[0, 0].numel()) for own in kernels]
        drawn += [(self.conv_bias[:, i], k * k) for i, k in enumerate(KERNELS)]
        drawn += [(own, self.down.shape[1]) for own in (self.project, self.project_bias)]
        for values, fan_in in drawn:
            values.copy_((torch.rand(values.shape, **drawing) * 2 - 1) / fan_in**0.5)

    def attach(self, model: nn.Module) -> None:
        """See `Adapter.attach`: the convolution that embeds the patches notes its maps."""
        found = convolutions_in_front(model)
        self._convolution = (model.get_submodule(found[-1]),) if found else ()
        for convolution in self._convolution:
            note_maps(convolution)

    def detach(self, model: nn.Module) -> None:
        """See `Adapter.detach`."""
        for convolution in self._convolution:
            forget_maps(convolution)
        self._convolution = ()

    def call(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """See `CallAdapter.call`."""
        x = args[0] if args else None
        width = self.gamma.shape[1]
        convolution = self._convolution[0] if self._convolution else None
        grid = grid_of(x, (*args[1:], *kwargs.values()), width, convolution)
        middle = _Middle(self, cast(Tensor, x), grid)
        with ExitStack() as stack:
            middle.watch(stack, self._block[0], self._attention[0])
            y = forward(*args, **kwargs)
        if middle.change is None:
            raise PlanError(
                f'a {_name(self._block[0])} does not norm its tokens between attention and FFN '
                'after it has normed them before the attention: mona knows no place in its middle; '
                'use another method for this backbone'
            )
        if not isinstance(y, Tensor) or y.shape != cast(Tensor, x).shape:
            raise PlanError(f'a {_name(self._block[0])} returns something else than its tokens')
        y = y + middle.change.view(y.shape)
        return y + self.change(y, 1, grid).view(y.shape)

    def change(self, x: Tensor, place: int, grid: TokenGrid) -> Tensor:
        """What an adapter adds to tokens ``[B, N, E]``, or to a map of them."""

        def own(parameter: Tensor) -> Tensor:
            return parameter[place].to(x.dtype)

        x = x.flatten(1, -2)
        normed = F.layer_norm(x, x.shape[-1:], own(self.norm_weight), own(self.norm_bias))
        scaled = normed * own(self.gamma) + x * own(self.gamma_x)
        hidden = F.linear(scaled, own(self.down), own(self.down_bias))
        prefix, size = grid.prefix, (grid.height, grid.width)
        maps = hidden[:, prefix:].transpose(1, 2).reshape(len(x), -1, *size)
        bias = self.conv_bias[place].mean(0).to(x.dtype)
        mixed = F.conv2d(maps, self._kernel(place).to(x.dtype), bias, padding=3, groups=len(bias))
        patches = (maps + mixed).flatten(2).transpose(1, 2)
        hidden = torch.cat([hidden[:, :prefix], patches], 1) if prefix else patches
        hidden = hidden + F.linear(hidden, own(self.project), own(self.project_bias))
        dropped = F.dropout(F.gelu(hidden), self.dropout, self.training)
        return F.linear(dropped, own(self.up), own(self.up_bias)).to(x.dtype)

    def _kernel(self, place: int) -> Tensor:
        """The mean of the three kernels, ``[h, 1, 7, 7]``."""
        inner = F.pad(self.conv3[place], (2, 2, 2, 2)) + F.pad(self.conv5[place], (1, 1, 1, 1))
        return (inner + self.conv7[place]) / len(KERNELS)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        _, bottleneck, width = self.down.shape
        return f'{width} -> {bottleneck} -> {width}, twice'


class _Middle:
    """One run of a block: the adapter behind the attention acts before the norm of the FFN.

    Attributes:
        change: What it has added, None as long as the block was not seen to have such a middle.
    """

    def __init__(self, adapter: MultiCognitive, x: Tensor, grid: TokenGrid) -> None:
        self.adapter, self.x, self.grid = adapter, x, grid
        self.change: Tensor | None = None
        self._normed = self._attended = False

    def watch(self, stack: ExitStack, block: nn.Module, attention: nn.Module) -> None:
        """Sets the hooks, taken off with the stack."""
        inside = set(attention.modules())
        for module in block.modules():
            if isinstance(module, nn.LayerNorm | nn.RMSNorm) and module not in inside:
                stack.callback(module.register_forward_pre_hook(self._norm).remove)
        stack.callback(attention.register_forward_hook(self._attend).remove)

    def _attend(self, *_: Any) -> None:
        self._attended = True

    def _norm(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self._attended:
            self._normed = True
            return None
        z = args[0]
        # Behind an attention whose input was not normed it is the branch that is normed.
        if self.change is not None or not self._normed or z is self.x:
            return None
        if z.numel() != self.x.numel() or z.shape[-1] != self.x.shape[-1]:
            return None
        self.change = self.adapter.change(z, 0, self.grid)
        return (z + self.change.view(z.shape), *args[1:])


def _name(module: nn.Module) -> str:
    return str(getattr(type(module), 'base_class', type(module)).__name__)


@dataclass(frozen=True)
class Mona(Method):
    """Multi-cognitive visual adapter tuning.

    Attributes:
        bottleneck: Hidden units h.
        dropout: Probability of dropping a hidden unit in training.
    """

    name: ClassVar[str] = 'mona'

    bottleneck: int = count(64)
    dropout: float = probability(0.1)

    def plan(self, request: Request) -> Plan | None:
        """Two adapters a block, nothing else. See `Method.plan`.

        Raises:
            PlanError: If the backbone has no transformer block, or embeds its patches by no
                convolution, so that nothing tells the grid of its tokens.
        """
        backbone = request.backbone
        blocks = request.layers()
        if not blocks or not convolutions_in_front(backbone):
            lacking = 'convolution before its transformer blocks' if blocks else 'transformer block'
            raise PlanError(
                f'{type(backbone).__name__} has no {lacking}: mona convolves the grid of the '
                'tokens, which is then not known; use another method for this backbone'
            )
        parts = []
        for block in blocks:
            width = layer_width(backbone, block)
            sizes = {'width': width, 'bottleneck': self.bottleneck, 'dropout': float(self.dropout)}
            number = MultiCognitive.count(width, self.bottleneck)
            parts.append(Part(f'{block}.{MultiCognitive.kind}', MultiCognitive.kind, sizes, number))
        return request.record(self, parts=tuple(parts))
