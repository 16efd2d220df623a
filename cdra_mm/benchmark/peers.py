"""Other ways to compute the squared per-sample gradients of the same weights.

A peer is made by ``build(case, model, batch, paths)`` and gives a function that returns the mean
over samples of the squared gradients, by parameter path, for the parameters that it covers.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .case import Batch, Case

__all__ = ['PEERS', 'Peer', 'Scorer']

Scorer = Callable[[], dict[str, Tensor]]
VMAP_CHUNK = 8  # samples whose gradients vmap holds at a time


@dataclass(frozen=True)
class Peer:
    """A way to compute scores.

    Attributes:
        title: Name in the tables.
        package: Distribution that it needs, '' for none.
        module: Module to import, '' for none.
        build: See the module's docstring.
        remark: What it cannot do, or what it was given to do well.
    """

    title: str
    package: str
    module: str
    build: Callable[[Case, nn.Module, Batch, Sequence[str]], Scorer]
    remark: str

    def missing(self) -> bool:
        """Whether its package is not installed."""
        return bool(self.module) and importlib.util.find_spec(self.module) is None


def _loop(case: Case, model: nn.Module, batch: Batch, paths: Sequence[str]) -> Scorer:
    parameters = {path: model.get_parameter(path) for path in paths}

    def run() -> dict[str, Tensor]:
        sums = {path: torch.zeros_like(p, dtype=torch.float32) for path, p in parameters.items()}
        for image, label in zip(*batch, strict=True):
            loss = case.losses(model, (image[None], label[None])).sum()
            for total, grad in zip(
                sums.values(), torch.autograd.grad(loss, list(parameters.values())), strict=True
            ):
                grad = grad.float()
                total.addcmul_(grad, grad)
        return {path: total.div_(case.batch) for path, total in sums.items()}

    return run


def _vmap(case: Case, model: nn.Module, batch: Batch, paths: Sequence[str]) -> Scorer:
    chosen = {path: model.get_parameter(path).detach() for path in paths}
    others = {k: p.detach() for k, p in model.named_parameters() if k not in chosen}
    images, labels = batch

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        def call(inputs: Tensor) -> Tensor:
            out: Tensor = torch.func.functional_call(model, {**others, **parameters}, (inputs,))
            return out

        return case.losses(call, (image[None], label[None])).sum()  # type: ignore[arg-type]

    per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))

    def run() -> dict[str, Tensor]:
        sums = {path: torch.zeros_like(p, dtype=torch.float32) for path, p in chosen.items()}
        with _plain_attention(model):
            for part in zip(images.split(VMAP_CHUNK), labels.split(VMAP_CHUNK), strict=True):
                for path, grads in per_sample(chosen, *part).items():
                    sums[path] += grads.float().square().sum(0)
        return {path: total.div_(case.batch) for path, total in sums.items()}

    return run


@contextmanager
def _plain_attention(model: nn.Module) -> Iterator[None]:
    """timm's attention without the fused kernel, for which vmap falls back to a loop."""
    fused = [m for m in model.modules() if getattr(m, 'fused_attn', False)]
    for module in fused:
        module.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True  # type: ignore[assignment]


def _opacus(case: Case, model: nn.Module, batch: Batch, paths: Sequence[str]) -> Scorer:
    from opacus import GradSampleModule

    # Its hooks work in training mode only; these models have no dropout and no batch norm.
    wrapped = _with_gradients_of(model, paths).train()
    parameters = {path: wrapped.get_parameter(path) for path in paths}
    sampled = GradSampleModule(wrapped, loss_reduction='sum')

    def run() -> dict[str, Tensor]:
        case.losses(sampled, batch).sum().backward()
        found = {}
        for path, parameter in parameters.items():
            found[path] = parameter.grad_sample.float().square().mean(0)  # type: ignore[attr-defined]
            parameter.grad_sample = parameter.grad = None  # type: ignore[attr-defined]
        return found

    return run


def _backpack(case: Case, model: nn.Module, batch: Batch, paths: Sequence[str]) -> Scorer:
    import backpack
    from backpack.extensions import SumGradSquared

    own = _with_gradients_of(model, paths)
    covered: dict[str, nn.Parameter] = {}
    for module_path, module in own.named_modules():
        if not isinstance(module, nn.Linear):
            continue
        here = {f'{module_path}.{name}': p for name, p in module.named_parameters(recurse=False)}
        here = {path: p for path, p in here.items() if p.requires_grad}
        if here:
            backpack.extend(module)
            covered |= here
    for path in set(paths) - set(covered):
        own.get_parameter(path).requires_grad_(False)

    def run() -> dict[str, Tensor]:
        with backpack.backpack(SumGradSquared()):
            case.losses(own, batch).sum().backward()
        found = {}
        for path, parameter in covered.items():
            found[path] = parameter.sum_grad_squared.float() / case.batch  # type: ignore[attr-defined]
            del parameter.sum_grad_squared  # type: ignore[attr-defined]
            parameter.grad = None
        return found

    return run


def _with_gradients_of(model: nn.Module, paths: Sequence[str]) -> nn.Module:
    """A copy of the model that computes these parameters' gradients and no others."""
    own = copy.deepcopy(model)
    for path, parameter in own.named_parameters():
        parameter.requires_grad_(path in paths)
        parameter.grad = None
    return own


@contextmanager
def quiet() -> Iterator[None]:
    """Hides the warnings of the peers, which say nothing about what is measured."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


PEERS: dict[str, Peer] = {
    'loop': Peer('batch-1 loop', '', '', _loop, 'one forward and backward per sample'),
    'vmap': Peer(
        'vmap(grad)',
        '',
        '',
        _vmap,
        f'holds the gradients of {VMAP_CHUNK} samples at a time; runs without the fused attention '
        'kernel, for which it would fall back to a loop over samples',
    ),
    'opacus': Peer(
        'Opacus',
        'opacus',
        'opacus',
        _opacus,
        'holds the gradients of all samples; its hooks work in training mode only, so not for a '
        'model with dropout; class and position embeddings must be frozen',
    ),
    'backpack': Peer(
        'BackPACK',
        'backpack-for-pytorch',
        'backpack',
        _backpack,
        'covers the linear layers only (SumGradSquared knows no LayerNorm); fails under autocast, '
        'where it multiplies the fp32 input with bf16 gradients',
    ),
}
