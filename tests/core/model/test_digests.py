"""Fingerprints tell base weights apart, and nothing else."""

from __future__ import annotations

import pytest
import torch

from cdra_mm.core import Plan, PlanError, apply_plan, base_state, digests_of, fingerprint
from cdra_mm.core.model.digests import fingerprint_differences, pack_digests, unpack_digests
from cdra_mm.core.model.old_fingerprints import is_old, old_fingerprint
from cdra_mm.core.packed import pack_text
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


def test_fingerprint_names_the_weight_that_differs():
    model = TinyViT()
    given = fingerprint(model)
    assert fingerprint_differences(given, model) == []
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[0, 0] += 1
        model.patch_embed.weight += 1  # it does not compete
    assert fingerprint_differences(given, model) == ['blocks.1.mlp.fc1.weight']
    assert 'weights, here' in fingerprint_differences(given, TinyViT(depth=1))[0]
    for foreign in ('', 'abc', '3:', '3:%%%', '3:AAAA', '9:' + given[2:]):
        assert len(fingerprint_differences(foreign, model)) == 1


def test_fingerprint_of_a_table_is_that_of_the_weights():
    model = TinyViT()
    table = digests_of(base_state(model))
    assert fingerprint(model, digests=table) == fingerprint(model)
    assert fingerprint_differences(fingerprint(model), model, table) == []


def test_table_comes_back_from_a_tensor():
    table = digests_of(TinyViT().state_dict() | {'count': torch.tensor(3)})
    packed = pack_digests(table)
    assert unpack_digests(packed) == table and unpack_digests(pack_digests({})) == {}
    assert torch.equal(pack_digests(dict(reversed(table.items()))), packed)
    assert len(packed) < 16 * len(table) + 400
    for damaged in (packed[:-1], packed[1:], packed.float(), pack_text(b'CDD1', [1], b'')):
        with pytest.raises(ValueError, match='.'):
            unpack_digests(damaged)
    for entries, data in (({'a': 1}, bytes(16)), ({'a': 'float32 3'}, bytes(15))):
        with pytest.raises(ValueError, match='digests'):
            unpack_digests(pack_text(b'CDD1', entries, data))


def test_fingerprints_of_earlier_releases_are_known():
    model = TinyViT()
    for given in ('0' * 64, '2:' + '0' * 64):
        assert is_old(given)
        own = old_fingerprint(given, model)
        assert is_old(own) and own == old_fingerprint(given, model, digests_of(base_state(model)))
        with pytest.raises(PlanError, match=f'fingerprint {given[:12]}, this model has {own[:12]}'):
            apply_plan(model, Plan(fingerprint=given))
        apply_plan(model, Plan(fingerprint=own))
    assert not is_old(fingerprint(model))
