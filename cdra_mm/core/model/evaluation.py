"""Evaluation mode for a while, with everything that ``train()`` touches put back after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ['evaluation_mode']


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts every module into evaluation mode; after it each is in its own mode again.

    ``train`` itself is called, there and back: classes that override it do more in it than set
    a flag (LeViT and TinyViT keep a table for evaluation, and forget it for training). Others
    freeze parts of the model in it, or keep norms in evaluation: every module's flag and every
    parameter's ``requires_grad`` are therefore put back one by one.
    """
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.train(False)
        for module, _ in modes:
            module.training = False  # whatever an override of train() has made of it
        _put_back(trained)
        yield
    finally:
        model.train(modes[0][1])
        for module, mode in modes:  # parents before their children
            if module.training != mode and type(module).train is not nn.Module.train:
                module.train(mode)
        for module, mode in modes:
            module.training = mode
        _put_back(trained)


def _put_back(trained: list[tuple[nn.Parameter, bool]]) -> None:
    for parameter, requires_grad in trained:
        parameter.requires_grad_(requires_grad)
