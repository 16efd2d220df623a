"""Fingerprints tell base weights apart, and nothing else."""

from __future__ import annotations

import torch

from cdra_mm.core import fingerprint
from tests.models import TinyViT


def test_fingerprint_depends_on_every_weight_and_nothing_else():
    torch.manual_seed(0)
    model = TinyViT()
    torch.manual_seed(0)
    twin = TinyViT()
    assert isinstance(fingerprint(model), str) and fingerprint(model)
    assert fingerprint(model) == fingerprint(twin.eval().requires_grad_(False))
    seen = {fingerprint(model)}
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.view(-1)[0] += 0.5
        seen.add(fingerprint(model))
    assert len(seen) >= 1 + sum(
        1 for name, _ in model.blocks.named_parameters() if 'weight' in name
    )


def test_fingerprint_of_names_ignores_the_others():
    model = TinyViT()
    names = ['blocks.0.mlp.fc1.weight', 'blocks.1.attn.qkv.weight']
    before = fingerprint(model, names)
    with torch.no_grad():
        model.head.weight.add_(1)
    assert fingerprint(model, names) == before
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight.add_(1)
    assert fingerprint(model, names) != before


def test_fingerprint_tells_two_swapped_weights_apart():
    model = TinyViT()
    before = fingerprint(model)
    a, b = model.blocks[0].mlp.fc1.weight.data, model.blocks[1].mlp.fc1.weight.data
    model.blocks[0].mlp.fc1.weight.data, model.blocks[1].mlp.fc1.weight.data = b, a
    assert fingerprint(model) != before
