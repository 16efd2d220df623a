"""Bytes that live at once, counted by hand, where nothing is there as where something is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cdra_mm.sizing.live_bytes import FusedAttention, LiveBytes


def chain(device):
    outside = torch.zeros(1000, device=device)
    with LiveBytes() as live:
        a = outside + 1  # 4000
        a.view(10, 100).t().mul_(2)  # the same storage
        b = a * 2  # 8000
        del a
        c = b[:10] + outside[0]  # 4040
        del b
    return live, c


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_live_bytes_by_hand(device):
    live, kept = chain(device)
    assert (live.peak, live.now) == (8000, 40)
    del kept
    assert live.now == 0


@pytest.mark.parametrize('frozen', [False, True])
def test_live_bytes_of_a_backward_are_the_same_on_the_meta_device(frozen):
    def peak(device):
        model = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)).to(device)
        model.requires_grad_(not frozen)
        x = torch.zeros(8, 16, device=device, requires_grad=True)
        with LiveBytes() as live:
            model(x).square().sum().backward()
        return live.peak

    assert peak('meta') == peak('cpu') > 4 * 8 * 64


def test_fused_attention_makes_no_map_of_tokens():
    tokens, width = 512, 16
    query = torch.zeros(1, 2, tokens, width, device='meta', requires_grad=True)
    with LiveBytes() as live, FusedAttention():
        out = F.scaled_dot_product_attention(query, query, value=query)
        assert out.shape == query.shape
        out.sum().backward()
    assert query.grad.shape == query.shape
    assert live.peak < 4 * 2 * tokens * tokens


def test_sparse_tensors_count_by_their_parts():
    indices, values = torch.arange(8).view(2, 4), torch.ones(4)
    with LiveBytes() as live:
        made = torch.sparse_coo_tensor(indices, values, (10, 10), is_coalesced=True)
        double = made * 2
    assert 16 <= live.now <= live.peak < 10 * 10 * 4  # new values, never the whole
    del made, double
    assert live.now == 0
