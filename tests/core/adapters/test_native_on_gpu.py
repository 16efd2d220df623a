"""The adapted product in C++ on a GPU; needs torch, Triton, pytest and a C++ compiler alone."""

from __future__ import annotations

import pytest
import torch

from tests.core.adapters.native import native, needs_compiler
from tests.core.problems import adapted
from tests.models import images

pytestmark = [needs_compiler, pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')]


@pytest.mark.parametrize('dtype', [None, torch.bfloat16, torch.float16])
def test_gradients_are_those_of_python(dtype):
    """Of several steps: the kernels of later ones are launched again by their addresses."""

    def run():
        _, model, _ = adapted('fused', dtype=torch.float32)
        model.cuda()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.01)
        found = {}
        for step in range(3):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast('cuda', dtype, enabled=dtype is not None):
                predicted = model(images(4, torch.float32)[0].cuda())
            predicted.float().square().mean().backward()
            trained = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            found |= {f'{step} {name}': grad for name, grad in trained.items()}
            optimizer.step()
        return found

    with native(False):
        wanted = run()
    with native(True):
        found = run()
    assert len(found) > 20
    torch.testing.assert_close(found, wanted)
