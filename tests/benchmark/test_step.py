"""The models whose steps are compared train what they should."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cdra_mm.benchmark import candidates
from cdra_mm.benchmark import compared_models as models
from cdra_mm.benchmark.inference import compare_inference
from cdra_mm.benchmark.step import LORA, REFERENCE, Step, compare_steps, step_builders
from cdra_mm.core.adapters.copied_weights import choose_product
from cdra_mm.sizing.block_sizes import make_block_plan

from .tiny import tiny_case

PER_RANK = 2 * (48 + 144 + 48 + 48 + 2 * (48 + 192))  # parameters of LoRA r=1, both blocks


def needs_peft():
    pytest.importorskip('peft')


def test_frozen_limit_reaches_the_first_block_and_trains_the_head():
    case = tiny_case()
    one = Step(case, models.frozen_limit(case.make_model()), case.make_batch())
    inputs = []
    one.model.blocks[0].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    loss = one.forward()
    inputs[0].retain_grad()
    loss.backward()
    assert inputs[0].grad is not None and inputs[0].grad.abs().sum() > 0
    trained = {name for name, p in one.model.named_parameters() if p.requires_grad}
    assert trained == {'head.weight', 'head.bias'} and models.trainable(one.model) == 0


def test_frozen_limit_computes_the_plain_output():
    case = tiny_case()
    images, _ = case.make_batch()
    with torch.no_grad():
        plain = case.make_model()(images)
        assert torch.equal(models.frozen_limit(case.make_model())(images), plain)


@pytest.mark.parametrize('name', [REFERENCE, 'ours paper', LORA, 'full'])
def test_compiled_step_is_one_graph(name, monkeypatch):
    """None is slower than the others for a reason of the benchmark's own."""
    if name == LORA:
        needs_peft()
    case = tiny_case(dtype='bf16')
    model = step_builders(case, ['paper'], ['peft'], {}, of_size=False)[name](case.make_model())
    choose_product(model, 'copied')  # a GPU's; of no meaning for the others
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compile_model = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda model: compile_model(model, backend=counted))
    Step(replace(case, mode='compile'), model, case.make_batch())()
    assert len(graphs) == 1


@pytest.mark.parametrize('name', [REFERENCE, 'ours paper', 'ours spt', LORA, 'full'])
def test_step_moves_exactly_what_is_trained(name):
    if name == LORA:
        needs_peft()
    case = tiny_case()
    build = step_builders(case, ['paper', 'spt'], ['peft'], {})[name]
    one = Step(case, build(case.make_model()), case.make_batch())
    before = {key: p.detach().clone() for key, p in one.model.named_parameters()}
    one()
    for key, p in one.model.named_parameters():
        assert torch.equal(p, before[key]) != p.requires_grad, key
        assert p.grad is None


def test_lora_sits_on_every_matrix_of_the_blocks():
    needs_peft()
    case = tiny_case()
    assert models.trainable(models.peft_lora(case.make_model())) == 8 * PER_RANK
    assert models.trainable(models.peft_lora(case.make_model(), rank=3)) == 3 * PER_RANK


def test_mmpretrain_lora_sits_on_the_same_matrices():
    problem = models.mmpretrain_problem()
    if problem:
        pytest.skip(problem)
    case = tiny_case()
    assert models.trainable(models.mmpretrain_lora(case.make_model())) == 8 * PER_RANK


def test_matched_rank_is_the_nearest_of_at_least_one():
    model = tiny_case().make_model()
    plan = make_block_plan(model, 'paper')
    rank = models.lora_rank_of_size(model, plan)
    assert abs(rank * PER_RANK - plan.num_trainable) <= PER_RANK / 2
    assert models.lora_rank_of_size(model, make_block_plan(model, 'spt')) == 1


def test_record_compares_with_both_references():
    needs_peft()
    record = compare_steps(tiny_case(), blocks=['spt'], peers=['peft'])
    found = record['candidates']
    assert list(found)[:3] == [REFERENCE, 'ours spt', LORA] and list(found)[-1] == 'full'
    assert found[REFERENCE]['ratio_vs_frozen_limit'] == found[LORA]['ratio_vs_peft_lora'] == 1.0
    base, lora, ours = (found[n]['saved_bytes'] for n in (REFERENCE, LORA, 'ours spt'))
    ratio = found['ours spt']['adapter_saved_bytes_ratio_vs_peft_lora']
    assert ratio == pytest.approx((ours - base) / (lora - base)) and ratio < 1
    assert found['full']['trainable'] > found[LORA]['trainable'] > 0


def test_missing_peers_are_skipped_with_a_line(monkeypatch):
    monkeypatch.setattr(models, 'installed', lambda module: False)
    record = compare_steps(tiny_case(repeats=1), blocks=['spt'])
    assert record['skipped'] == {
        'peft LoRA': 'peft is not installed: pip install peft',
        'mmpretrain LoRA': 'mmpretrain is not installed',
    }
    assert 'ratio_vs_peft_lora' not in record['candidates']['ours spt']
    assert 'ratio_vs_frozen_limit' in record['candidates']['ours spt']


def test_model_that_does_not_fit_leaves_the_others(monkeypatch):
    def large(model):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(models, 'full', large)
    record = compare_steps(tiny_case(), blocks=['spt'], peers=[])
    assert record['skipped'] == {'full': 'out of memory at batch 3'}
    assert list(record['candidates']) == [REFERENCE, 'ours spt']


def test_step_that_does_not_fit_leaves_the_others(monkeypatch):
    real = candidates.measure

    def starved(candidates, **options):
        def large():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        return real(candidates | {'full': large}, **options)

    monkeypatch.setattr(candidates, 'measure', starved)
    record = compare_steps(tiny_case(), blocks=['spt'], peers=[])
    assert record['skipped'] == {'full': 'out of memory at batch 3'}
    assert list(record['candidates']) == [REFERENCE, 'ours spt']


def test_inference_compares_merged_with_the_base():
    record = compare_inference(tiny_case(), blocks=['paper'], peers=[])
    assert list(record['candidates']) == ['base', 'ours paper merged', 'ours paper unmerged']
    assert all('ratio_vs_base' in entry for entry in record['candidates'].values())
