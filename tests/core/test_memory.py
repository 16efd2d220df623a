"""What scoring, selection and planning hold at most, seen at every operation that torch runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cdra_mm.core import estimate_scores, make_plan, select, selection


class Largest(TorchDispatchMode):
    """Notes the largest tensor that an operation makes anew, in entries, by type."""

    def __init__(self) -> None:
        super().__init__()
        self.numel: dict[bool, int] = {True: 0, False: 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        held = {
            t.untyped_storage().data_ptr()
            for t in tree_leaves((args, kwargs))
            if isinstance(t, torch.Tensor)
        }
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                if tensor.untyped_storage().data_ptr() not in held:
                    is_mask = tensor.dtype == torch.bool
                    self.numel[is_mask] = max(self.numel[is_mask], tensor.numel())
        return out


@pytest.mark.parametrize('choose', ['select', 'budget'])
def test_selection_copies_no_scores(monkeypatch, choose):
    monkeypatch.setattr(selection, 'CHUNK', 1 << 12)
    generator = torch.Generator().manual_seed(0)
    scores = {f'w{i}': torch.rand(1024, 1024, generator=generator) for i in range(2)}
    with Largest() as largest:
        if choose == 'select':
            select(scores, gamma=0.01)
        else:
            make_plan(scores, budget_params=3000, rank_rule='count')
    # Masks are a byte an entry; all else is one chunk or one histogram per target.
    assert largest.numel[True] == 1024 * 1024
    assert largest.numel[False] <= 2 * selection.BUCKETS


def test_scoring_makes_no_per_sample_gradient():
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    x = torch.randn(32, 3, 64)

    def losses(model, x):
        return F.mse_loss(model(x), x, reduction='none').mean((1, 2))

    with Largest() as largest:
        estimate_scores(model, [x], losses, targets=['0.weight', '2.weight', '0.bias'])
    activations = 32 * 3 * 256
    assert largest.numel[False] <= activations < 32 * 64 * 256
