"""Several adapters on one base: each computes what it computes alone, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import cdra_mm.methods
from cdra_mm.core import (
    CDRAError,
    CheckpointError,
    NamedAdapters,
    Part,
    Plan,
    SparseMatrix,
    Vector,
    adapters,
    apply_plan,
    fingerprint,
    load_adapter,
    merge_adapters,
    plan_of,
    remove_adapters,
    save_adapter,
    unmerge_adapters,
)
from tests.core.problems import move, outputs, random_plan
from tests.models import MODELS

assert cdra_mm.methods  # its import makes the kinds known that the plans below name


def fresh(kind='fused'):
    torch.manual_seed(0)
    return MODELS[kind]().double().eval()


def mixed_plan(model):
    """Parts of other kinds, single entries of a matrix, a vector and a token trained whole."""
    width = len(model.norm.weight)
    return Plan(
        method='mixed',
        parts=(
            Part('blocks.0.attn.proj.weight', 'rescaling', {}, 2 * width),
            Part('blocks.0.norm1.affine', 'affine', {}, 2 * width),
        ),
        sparse=(SparseMatrix('blocks.1.mlp.fc1.weight', (2 * width, width), (1, 7, 30)),),
        vectors=(Vector('blocks.1.norm2.bias', width, None, width),),
        also_train={'cls_token': width},
        fingerprint=fingerprint(model),
    )


def saved(folder, kind='fused'):
    """Three files of one base: different places, ranks and kinds."""
    plans = [random_plan(fresh(kind), 0), random_plan(fresh(kind), 5, 1)]
    if kind == 'fused':
        plans.append(mixed_plan(fresh(kind)))
    paths = {}
    for index, plan in enumerate(plans):
        model = apply_plan(fresh(kind), plan, seed=index)
        move(model, index)
        paths[f'n{index}'] = folder / f'{index}.safetensors'
        save_adapter(model, paths[f'n{index}'])
    return paths


def named(model, paths):
    adapters_of = NamedAdapters(model)
    for name, path in paths.items():
        adapters_of.add(name, path)
    return adapters_of


def alone(path, kind='fused'):
    model = fresh(kind)
    load_adapter(model, path)
    return model


def trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def assert_same_model(model, other):
    state, expected = model.state_dict(), other.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], expected[key]) for key in state)
    assert torch.equal(outputs(model), outputs(other))
    assert trainable(model) == trainable(other) and plan_of(model) == plan_of(other)


@pytest.mark.parametrize('kind', ['fused', 'mha', 'windowed'])
def test_named_adapter_is_what_its_file_is_alone(kind, tmp_path):
    paths = saved(tmp_path, kind)
    model = fresh(kind)
    several = named(model, paths)
    order = [*paths, *reversed(paths), None, *paths]
    for name in order:
        several.use(name)
        assert several.current == name
        assert_same_model(model, alone(paths[name], kind) if name else fresh(kind))
    assert several.names == tuple(paths)


def test_file_may_be_written_over_after_it_was_added(tmp_path):
    path = saved(tmp_path)['n2']  # the one with parameters trained whole
    expected = alone(path)
    model = fresh()
    several = named(model, {'a': path})
    with path.open('r+b') as file:  # in place, as a copy does it, not by a rename
        file.write(b'\0' * path.stat().st_size)
    several.use('a')
    assert_same_model(model, expected)


def test_switching_keeps_what_was_trained_meanwhile(tmp_path):
    paths = saved(tmp_path)
    model = fresh()
    several = named(model, paths)
    several.use('n0')
    move(model, 9)
    expected = outputs(model)
    several.use('n2')
    several.use('n0')
    assert torch.equal(outputs(model), expected)


def test_switching_copies_no_base_weight_and_keeps_every_module(tmp_path):
    paths = saved(tmp_path)
    model = fresh()
    before = {name: parameter for name, parameter in model.named_parameters()}
    places = {name: parameter.data_ptr() for name, parameter in before.items()}
    modules = [id(module) for module in model.modules()]
    several = named(model, paths)
    for name in ('n1', 'n0', 'n2', None):
        several.use(name)
        after = dict(model.named_parameters())
        assert all(after[key] is parameter for key, parameter in before.items())
        assert all(after[key].data_ptr() == place for key, place in places.items())
    assert [id(module) for module in model.modules()] == modules
    held = [key for entry in several._entries.values() for key in entry.whole]
    assert held and not any(before[key].dim() == 2 for key in held)


def test_removed_adapter_is_gone_and_the_model_plain(tmp_path):
    paths = saved(tmp_path)
    model = fresh()
    several = named(model, paths)
    several.use('n0')
    several.remove('n0')
    assert several.current is None and several.names == ('n1', 'n2')
    assert_same_model(model, fresh())
    several.use('n1')
    several.remove('n2')
    assert_same_model(model, alone(paths['n1']))


def test_plan_is_added_fresh_beside_an_adapter_in_use(tmp_path):
    paths = saved(tmp_path)
    model = fresh()
    several = named(model, {'n0': paths['n0']})
    several.use('n0')
    plan = random_plan(fresh(), 3)
    several.add('new', plan, seed=4)
    assert several.current == 'n0'
    assert_same_model(model, alone(paths['n0']))
    several.use('new')
    assert_same_model(model, apply_plan(fresh(), plan, seed=4))
    assert several.plan_of('new') == plan


def test_adapter_of_another_base_is_refused_and_nothing_changes(tmp_path):
    paths = saved(tmp_path)
    torch.manual_seed(8)
    model = MODELS['fused']().double().eval()
    several = NamedAdapters(model)
    with pytest.raises(CDRAError, match='base'):
        several.add('n0', paths['n0'])
    several.add('n0', paths['n0'], check_base=False)
    several.use('n0')
    expected = outputs(model)
    with pytest.raises(CDRAError, match='base'):
        several.add('n1', paths['n1'])
    assert several.names == ('n0',) and torch.equal(outputs(model), expected)


def test_refusals_name_what_is_wrong(tmp_path):
    paths = saved(tmp_path)
    model = fresh()
    several = named(model, paths)
    with pytest.raises(CDRAError, match="'n0' already"):
        several.add('n0', paths['n1'])
    with pytest.raises(CDRAError, match='empty'):
        several.add('', paths['n1'])
    for call in (several.use, several.remove, several.plan_of):
        with pytest.raises(CDRAError, match=r"no adapter 'n00' \(did you mean 'n0'\?\)"):
            call('n00')
    with pytest.raises(CheckpointError, match='gone'):
        several.add('gone', tmp_path / 'gone.safetensors')
    with pytest.raises(CDRAError, match='adapted already'):
        NamedAdapters(alone(paths['n0']))
    assert several.names == tuple(paths) and several.current is None


def test_merged_state_is_refused_until_it_is_unmerged(tmp_path):
    paths = saved(tmp_path)
    model = fresh()
    several = named(model, paths)
    several.use('n0')
    merge_adapters(model)
    merged = outputs(model)
    for refused in (
        lambda: several.use('n1'),
        lambda: several.use(None),
        lambda: several.add('n9', paths['n1']),
        lambda: several.remove('n0'),
    ):
        with pytest.raises(CDRAError, match='unmerge_adapters'):
            refused()
        assert several.current == 'n0' and torch.equal(outputs(model), merged)
    unmerge_adapters(model)
    several.use('n1')
    torch.testing.assert_close(outputs(model), outputs(alone(paths['n1'])), rtol=1e-12, atol=1e-12)


def test_adapters_changed_by_other_means_are_noticed(tmp_path):
    paths = saved(tmp_path)
    model = fresh()
    several = named(model, paths)
    several.use('n0')
    remove_adapters(model, discard=True)
    with pytest.raises(CDRAError, match='other means'):
        several.use('n1')
    model = fresh()
    several = named(model, paths)
    load_adapter(model, paths['n0'])
    with pytest.raises(CDRAError, match='other means'):
        several.use('n1')
    assert adapters(model)


def test_adapter_off_the_model_follows_it_to_another_device(tmp_path):
    paths = saved(tmp_path)
    model = fresh().to('meta')
    several = NamedAdapters.__new__(NamedAdapters)
    several.__dict__.update(named(fresh(), {'n0': paths['n0'], 'n1': paths['n1']}).__dict__)
    several.model = model
    several.use('n0')
    held = {key: value for key, value in model.state_dict().items() if key != 'cdra_plan'}
    assert {value.device.type for value in (*held.values(), *model.buffers())} == {'meta'}


def two_names():
    """A model of which a block stands in a second place."""
    model = fresh()
    model.twin = model.blocks[1]
    return model


def test_plan_that_names_a_module_by_its_second_name_is_saved_and_loaded(tmp_path):
    plan = random_plan(two_names())

    def renamed(records):
        return tuple(replace(r, name=r.name.replace('blocks.1', 'twin')) for r in records)

    plan = replace(plan, blocks=renamed(plan.blocks), vectors=renamed(plan.vectors), dropped=())
    assert sum('twin' in record.name for record in (*plan.blocks, *plan.vectors)) > 5
    model = apply_plan(two_names(), plan)
    move(model)
    path = tmp_path / 'a.safetensors'
    save_adapter(model, path)
    again = two_names()
    load_adapter(again, path)
    assert torch.equal(outputs(again), outputs(model))
    adapters_of = named(two_names(), {'a': path})
    adapters_of.use('a')
    assert torch.equal(outputs(adapters_of.model), outputs(model))
