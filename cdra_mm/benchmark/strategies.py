"""The ways to multiply by an adapted weight, beside the frozen weight: what the choice rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cdra_mm.core.adapters import compact_linear as product
from cdra_mm.sizing.block_sizes import label, make_block_plan

from . import compared_models as models
from .candidates import Candidates
from .case import Case
from .peers import quiet

__all__ = ['STRATEGIES', 'compare_strategies', 'taking']

REFERENCE = 'frozen'
# Whether the weight is merged, and the widest block whose own gradient is taken.
STRATEGIES = {
    'merged, through the block': (True, 1 << 40),
    'merged, through the factors': (True, 0),
    'factored': (False, 0),
}


@contextmanager
def taking(strategy: str) -> Iterator[None]:
    """Takes one of `STRATEGIES` whatever the shapes and types are."""
    merged, small_block = STRATEGIES[strategy]
    before = product.takes_merged, product.SMALL_BLOCK
    product.takes_merged, product.SMALL_BLOCK = lambda x, weight: merged, small_block
    try:
        yield
    finally:
        product.takes_merged, product.SMALL_BLOCK = before


def compare_strategies(case: Case, *, blocks: Sequence[str] = ('paper', 'spt')) -> dict[str, Any]:
    """Times of the products of one transformer block, forward and backward.

    Args:
        case: The setting; every layer gets an input of its own, and its gradient is taken.
        blocks: Block sizes, see `make_block_plan`.
    """
    compared = Candidates(case, 'strategies', {'frozen': REFERENCE}, blocks=list(blocks))
    with quiet():
        plain = case.make_model()
        runs: dict[str, Callable[[], None]] = {REFERENCE: _products(case, _layers(plain))}
        plain.requires_grad_(False)
        for kind in blocks:
            plan = make_block_plan(plain, kind, seed=case.seed)
            run = _products(case, _layers(models.ours(case.make_model(), plan, case.seed)))
            for strategy in STRATEGIES:
                runs[f'{label(kind)}: {strategy}'] = _by(strategy, run)
            model = models.ours(case.make_model(), plan, case.seed, 'copied')
            runs[f'{label(kind)}: copied'] = _products(case, _layers(model))
        compared.time(runs)
    return compared.record


def _layers(model: nn.Module) -> list[nn.Module]:
    """The linear layers of the middle block."""
    paths = models.linear_paths(model)
    block = paths[len(paths) // 2].rpartition('.')[0].rpartition('.')[0]
    return [model.get_submodule(path) for path in paths if path.startswith(f'{block}.')]


def _products(case: Case, layers: Sequence[nn.Module]) -> Callable[[], None]:
    tokens = (case.image_size // 16) ** 2 + 1
    generator = torch.Generator().manual_seed(case.seed)
    inputs: list[Tensor] = []
    grads: list[Tensor] = []
    for layer in layers:
        out, width = layer._parameters['weight'].shape  # type: ignore[union-attr]
        for size, held in ((width, inputs), (out, grads)):
            values = torch.randn(case.batch, tokens, size, generator=generator)
            held.append(values.to(case.device))

    def run() -> None:
        for layer, x, grad in zip(layers, inputs, grads, strict=True):
            with case.autocast():
                y = layer(x.detach().requires_grad_())
            y.backward(grad.to(y.dtype))
            layer.zero_grad(set_to_none=True)

    return run


def _by(strategy: str, run: Callable[[], None]) -> Callable[[], None]:
    def taken() -> None:
        with taking(strategy):
            run()

    return taken
