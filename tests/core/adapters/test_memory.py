"""What scoring, selection and planning hold at most, seen at every operation that torch runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cdra_mm.core import estimate_scores, make_plan, select
from cdra_mm.core.planning import compaction, selection


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


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('choose', ['select', 'budget'])
def test_selection_copies_no_scores(monkeypatch, choose, dtype):
    monkeypatch.setattr(selection, 'CHUNK', 1 << 12)
    monkeypatch.setattr(compaction, 'CHUNK', 1 << 12)
    generator = torch.Generator().manual_seed(0)
    scores = {
        f'w{i}': torch.rand(1024, 1024, generator=generator).pow_(64).to(dtype) for i in range(2)
    }
    with Largest() as largest:
        if choose == 'select':
            select(scores, gamma=0.01)
        else:
            make_plan(scores, budget_params=3000, rank_rule='count')
    # Masks are a byte an entry; all else is a chunk, or a few numbers per bucket.
    assert largest.numel[True] == 1024 * 1024
    assert largest.numel[False] <= 3 * selection.BUCKETS


def peak_bytes(work):
    """The most bytes that torch held for `work` at once, the scratch of its kernels included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    held = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == '[memory]':
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize(
    ('options', 'dtype'),
    [
        ({'gamma': 0.01}, torch.float32),
        ({'gamma': 1.0}, torch.float32),
        ({'num_sensitive': 5000}, torch.bfloat16),
        ({'budget_params': 20_000}, torch.float32),
        ({'budget_params': 20_000}, torch.bfloat16),
        ({'budget_params': 20_000, 'rank_rule': 'count'}, torch.float32),
    ],
    ids=str,
)
def test_planning_holds_less_than_a_copy_of_the_largest_tensor(monkeypatch, options, dtype):
    """Nothing grows with the model: a mask of one tensor, a byte an entry, and what is small."""
    monkeypatch.setattr(selection, 'CHUNK', 1 << 14)
    monkeypatch.setattr(compaction, 'CHUNK', 1 << 14)
    generator = torch.Generator().manual_seed(0)
    shapes = {'large': (2048, 1024), **{f'small{i}': (512, 1024) for i in range(24)}}
    scores = {}
    for name, shape in shapes.items():
        scores[name] = torch.rand(shape, generator=generator).pow_(8)
        scores[name] *= torch.rand(shape[0], 1, generator=generator).pow_(4)
        scores[name] = scores[name].to(dtype)
    # Many entries of one value: they are cut within a target.
    scores['small0'].clamp_(min=1e-3)
    largest = 4 * scores['large'].numel()
    masks = sum(score.numel() for score in scores.values())
    histograms = 8 * selection.BUCKETS * len(scores)
    assert min(masks, histograms) > 1.5 * largest
    assert 0 < peak_bytes(lambda: make_plan(scores, **options)) < largest


def test_scoring_makes_no_per_sample_gradient():
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64))
    x = torch.randn(32, 3, 64)

    def losses(model, x):
        return F.mse_loss(model(x), x, reduction='none').mean((1, 2))

    with Largest() as largest:
        estimate_scores(model, [x], losses, targets=['0.weight', '2.weight', '0.bias'])
    activations, sums = 32 * 3 * 256, 2 * 64 * 256 + 256
    assert largest.numel[False] <= max(activations, sums) < 32 * 64 * 256
