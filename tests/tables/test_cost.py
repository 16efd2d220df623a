"""The table of costs: what is measured of which model. Times are not asserted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch

from cdra_mm.benchmark.case import Case
from cdra_mm.core import ConfigError
from cdra_mm.tables import cost
from cdra_mm.tables.grid_file import read_rows
from cdra_mm.tables.study_options import parser
from cdra_mm.tables.text_formats import FORMATS

from .project import REPOSITORY

METHODS = REPOSITORY / 'configs/_base_/tables/methods.py'


def build_tiny(name: str, image_size: int) -> torch.nn.Module:
    backbone = timm.models.vision_transformer.VisionTransformer(
        img_size=image_size, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0
    )
    return cost.Classifier(backbone, 32)


@pytest.fixture
def case(monkeypatch):
    # Fresh processes would take most of the time; what they measure is another matter here.
    monkeypatch.setattr(cost, 'in_child', cost._call)
    return Case('tiny', image_size=32, batch=2, repeats=1, warmup=0, build=build_tiny)


@pytest.fixture
def rows():
    names = ('full', 'vpt_deep', 'adapter', 'linear', 'lora', 'noah', 'spt_lora_8', 'cdra')
    found = {row.name: row for row in read_rows(METHODS)}
    sizes = dict(prompt_dims=[1, 2], lora_dims=[1, 2], adapter_dims=[1, 2], budget_params=500)
    found['noah'] = replace(found['noah'], method={**found['noah'].method, **sizes})
    large = {**found['cdra'].method, 'budget_percent': 20.0}
    found['cdra'] = replace(found['cdra'], method=large)
    return [found[name] for name in names]


def test_adapted_model_trains_what_the_method_says_and_the_head(case, rows):
    by_name = {row.name: cost.adapt(case, row) for row in rows}
    for name, model in by_name.items():
        assert all(p.requires_grad for p in model.head.parameters()), name
    trained = {
        name: sum(p.numel() for p in model.backbone.parameters() if p.requires_grad)
        for name, model in by_name.items()
    }
    total = sum(p.numel() for p in case.make_model().backbone.parameters())
    # LoRA of rank 8 on q and v of two blocks; two layers of 10 prompts.
    assert (trained['full'], trained['linear']) == (total, 0)
    assert (trained['lora'], trained['vpt_deep']) == (2 * 2 * 8 * 64, 2 * 10 * 32)
    assert 0 < trained['cdra'] <= total / 5
    assert 450 < trained['noah'] <= 500


def test_costs_are_of_merged_models_where_methods_merge(case, rows):
    said = []
    costs = cost.measure_costs(case, rows, tell=said.append)
    assert not said and list(costs) == [row.name for row in rows]
    merges = {name: found.merged for name, found in costs.items()}
    assert merges == {name: name not in ('vpt_deep', 'adapter', 'noah') for name in merges}
    table = cost.cost_table(case, rows, costs)
    text = FORMATS['terminal'](table)
    assert 'VPT-Deep *' in text and 'CDRA *' not in text
    assert table.families[0][0] == '' and table.families[-1][0] == 'Selection-based'


def test_cost_of_training_counts_weights_and_optimizer_state(case, rows):
    """Full fine-tuning holds two further numbers for each weight; the head alone does not."""
    full, linear = (cost._peaks(case, row)[1] for row in (rows[0], rows[3]))
    size = sum(p.nbytes for p in case.make_model().parameters())
    if full is not None:  # systems without /proc do not tell
        assert full >= 3 * size and linear >= size


def test_costs_leave_out_a_method_that_does_not_apply(case, rows):
    said = []
    none = replace(rows[-1], method={'type': 'cdra', 'budget_params': 1})
    costs = cost.measure_costs(case, [rows[3], none], tell=said.append)
    assert list(costs) == ['linear']
    assert said[0].startswith('left out: cdra: ') and len(said) == 1
    assert cost.cost_table(case, [none], costs).families[0][1][0][1][0].mean is None


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--methods', 'lorra'], r"method 'lorra' is not in the grid \(did you mean 'lora'\?\)"),
        (['--methods', 'full', '--model', 'ViT-X'], "model 'ViT-X' is unknown"),
        (['--methods', 'full', '--batch', '0'], '--batch 0: expected at least 1'),
    ],
)
def test_cost_refuses_wrong_input(words, message):
    with pytest.raises(ConfigError, match=message):
        cost.main(parser().parse_args(['cost', *words]), REPOSITORY / 'tools')
