"""Learnt tokens beside those of the image: the trained parts of visual prompt tuning (`vpt`).

Prompts stand behind the other tokens. What leaves a block has the number of tokens that came
in: heads for dense prediction read the patch tokens of any block, and the final norm sees no
prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdra_mm.core import CallAdapter, find_layers, layer_width, register_kind
from cdra_mm.core.adapters.low_rank import master_dtype
from cdra_mm.errors import PlanError

__all__ = ['InputPrompts', 'Prompts']


class _PromptTokens(CallAdapter):
    """Learnt tokens. They do not merge: they change what every other token attends to.

    Args:
        module: Where they are put in; gives device and floating type.
        num_prompts: p.
        width: E.
        dropout: Probability with which an entry of the prompts is dropped in training.
        bound: The initial values are uniform in ``[-bound, bound]``.

    Attributes:
        tokens: The prompts, ``[p, E]``.
    """

    can_merge = False

    def __init__(
        self,
        module: nn.Module,
        num_prompts: int,
        width: int,
        dropout: float = 0.0,
        bound: float = 0.0,
    ) -> None:
        super().__init__()
        if num_prompts < 1 or width != layer_width(module, ''):
            raise ValueError(f'{num_prompts} prompts of width {width}')
        if not 0 <= dropout < 1 or not 0 <= bound < math.inf:
            raise ValueError(f'dropout is {dropout}, bound is {bound}')
        like = next(module.parameters())
        self.bound, self.dropout = float(bound), float(dropout)
        tokens = torch.zeros(num_prompts, width, device=like.device, dtype=master_dtype(like))
        self.register_parameter(self.kind, nn.Parameter(tokens))

    @property
    def tokens(self) -> Tensor:
        """See the class."""
        (tokens,) = self.parameters()
        return tokens

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Uniform in ``[-bound, bound]``, as the paper's code does it."""
        values = torch.rand(self.tokens.shape, generator=generator, device=generator.device) * 2 - 1
        self.tokens.copy_(values * self.bound)

    def appended(self, x: Tensor) -> Tensor:
        """``x [B, N, E]`` with the prompts behind, ``[B, N + p, E]``."""
        tokens = F.dropout(self.tokens.expand(len(x), -1, -1), self.dropout, self.training)
        return torch.cat([x, tokens.to(x.dtype)], 1)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f'prompts={len(self.tokens)}'


@register_kind
class Prompts(_PromptTokens):
    """Prompts of one block: it gets them behind its tokens, and what becomes of them is dropped.

    That equals the paper's replacing: block i + 1 drops what block i has made of its prompts,
    and puts its own in the same place.
    """

    kind = 'prompts'

    def call(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """See `CallAdapter.call`."""
        x = _tokens_of(args, kwargs, self.tokens.shape[1])
        own, _ = _split(forward(self.appended(x), *args[1:], **kwargs), x.shape[1])
        return own


@register_kind
class InputPrompts(_PromptTokens):
    """Prompts that go in before the first block of a backbone and through all of them.

    Between two blocks they are kept apart, so that the backbone sees its own tokens only:
    while it runs, hooks on its blocks take the prompts off and put them on again. What a
    block computes again inside of itself (mmseg's ``with_cp``) does not concern them; a
    backbone that computes its blocks again from outside is refused.
    """

    kind = 'input_prompts'

    def __init__(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(module, *args, **kwargs)
        self.backbone = (module,)  # in a tuple: its owner, no child of it
        self.blocks = find_layers(module)
        if not self.blocks:
            raise ValueError('it has no transformer blocks')

    def call(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """See `CallAdapter.call`."""
        (backbone,) = self.backbone
        again = (getattr(module, 'grad_checkpointing', False) for module in backbone.modules())
        if torch.is_grad_enabled() and True in again:
            raise PlanError(
                'vpt_shallow hands its prompts from block to block, so that no block can be '
                'computed again by itself: switch grad_checkpointing off, or use vpt_deep'
            )
        blocks = [backbone.get_submodule(path) for path in self.blocks]
        carrier = _Carrier(self, blocks[0])
        with ExitStack() as stack:
            for block in blocks:
                before = block.register_forward_pre_hook(carrier.put_on, with_kwargs=True)
                # Other hooks on the block see its own tokens: ours are the innermost.
                after = block.register_forward_hook(carrier.take_off, prepend=True)
                stack.callback(before.remove)
                stack.callback(after.remove)
            return forward(*args, **kwargs)


class _Carrier:
    """The prompts of one forward pass on their way between its blocks."""

    def __init__(self, prompts: InputPrompts, first: nn.Module) -> None:
        self.prompts, self.first = prompts, first
        self.carried: Tensor | None = None
        self.number = 0  # tokens of the backbone's own

    def put_on(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Hook before a block."""
        x = _tokens_of(args, kwargs, self.prompts.tokens.shape[1])
        if block is self.first:
            longer = self.prompts.appended(x)
        elif self.carried is None:
            raise PlanError('vpt_shallow: the first block was not called before the others')
        else:
            longer = torch.cat([x, self.carried], 1)
        self.number = x.shape[1]
        return (longer, *args[1:]), kwargs

    def take_off(self, block: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        """Hook behind a block."""
        own, self.carried = _split(y, self.number)
        return own


def _tokens_of(args: tuple[Any, ...], kwargs: Mapping[str, Any], width: int) -> Tensor:
    """The tokens ``[B, N, E]`` that a block is called with.

    Raises:
        PlanError: If it is called with anything else.
    """
    x = args[0] if args else None
    if not isinstance(x, Tensor) or x.dim() != 3 or x.shape[2] != width:
        given = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise PlanError(
            f'the blocks are called with {given}: prompts need tokens [B, N, {width}], as a plain '
            'vision transformer has them'
        )
    named = {f'argument {index}': value for index, value in enumerate(args)} | dict(kwargs)
    for name, value in named.items():
        if value is not x and value is not None and value is not False:
            raise PlanError(
                f'the blocks are called with {name} beside the tokens (rotary embeddings, a mask '
                'or the size of the grid): it does not know of prompts. Use another method for '
                'this backbone'
            )
    return x


def _split(y: Any, number: int) -> tuple[Tensor, Tensor]:
    """The first ``number`` tokens of a block's output, and the prompts behind them.

    Raises:
        PlanError: If the block returns anything but its tokens.
    """
    if not isinstance(y, Tensor) or y.dim() != 3:
        raise PlanError(
            f'a block returns a {type(y).__name__}: prompts need blocks that return their tokens '
            '[B, N, E]'
        )
    return y[:, :number], y[:, number:]
