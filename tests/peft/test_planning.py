"""One call from a model and its data to a config: what core and the method would give."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip('peft', '0.21', reason='peft (extra peft) is not installed')
pytest.importorskip('transformers', '5.24')

from peft import get_peft_model

from cdra_mm.core import Block, Plan, estimate_scores, find_targets
from cdra_mm.core.scoring.mean_gradients import mean_gradients
from cdra_mm.errors import ConfigError, PlanError, ScoreError
from cdra_mm.methods import Request, make_method
from cdra_mm.peft import CdraConfig, cdra_config, mean_loss
from cdra_mm.peft.config import in_rising_order

from .clients import CLIENTS, config_of

VIT = CLIENTS['timm ViT']
DINO = CLIENTS['DINOv2']


@pytest.mark.parametrize('allocation', ['scores', 'energy', 'descent'])
def test_plan_is_that_of_the_method(allocation):
    model, batches = DINO.build(), [DINO.batch()]
    score = estimate_scores if allocation == 'scores' else mean_gradients
    scores = score(model, batches, DINO.loss)
    method = make_method(dict(type='cdra', budget_params=900, allocation=allocation))
    expected, _ = in_rising_order(method.plan(Request(model, scores)), {})
    config = config_of(DINO, budget_percent=None, budget_params=900, allocation=allocation,
                       also_train=[])  # fmt: skip
    assert config.plan.blocks == expected.blocks and config.plan.vectors == expected.vectors
    assert {'statistic', 'num_samples', 'seed'} <= config.plan.settings.keys()
    assert config.plan.settings['num_samples'] == 4


def test_percentage_is_of_what_is_not_trained_whole():
    model = DINO.build()
    heads = sum(p.numel() for p in model.classifier.parameters())
    backbone = sum(p.numel() for p in model.parameters()) - heads
    config = config_of(DINO, budget_percent=5)
    assert config.plan.num_trainable <= backbone * 5 // 100 < config.plan.num_trainable + 64


def test_backbone_of_a_model_has_its_names_in_it():
    whole = config_of(DINO, budget_percent=None, budget_params=900, also_train=[])
    part = config_of(DINO, budget_percent=None, budget_params=900, backbone='dinov2',
                     also_train=['embeddings.cls_token'])  # fmt: skip
    assert 'dinov2.embeddings.cls_token' in part.plan.also_train
    names = {block.name for block in part.plan.blocks}
    assert names <= set(find_targets(DINO.build())) and names & {b.name for b in whole.plan.blocks}
    get_peft_model(DINO.build(), part)


def test_gradient_start_lies_along_the_mean_gradient():
    config = config_of(VIT, allocation='energy', start='gradient', also_train=[])
    model = get_peft_model(VIT.build(), config)
    gradients = mean_gradients(VIT.build(), [VIT.batch()], VIT.loss)
    for block in config.plan.blocks:
        rows, cols = torch.tensor(block.rows), torch.tensor(block.cols)
        inside = gradients[block.name][rows[:, None], cols]
        _, _, right = torch.linalg.svd(inside)
        down = config.start[block.name]
        leading = right[: block.rank].t() @ right[: block.rank]
        torch.testing.assert_close(down @ leading, down, rtol=1e-3, atol=1e-4)
    started = dict(model.named_parameters())
    name = config.plan.blocks[0].name
    module, _, suffix = name.rpartition('.')
    key = f'base_model.model.{module}.cdra.cdra_adapters.default.{suffix}.down'
    assert torch.equal(started[key], config.start[name])


def test_no_more_samples_are_scored_than_asked_for():
    seen = []

    def loss(model, batch):
        seen.append(len(batch[0]))
        return VIT.loss(model, batch)

    batches = [VIT.batch()] * 5
    config = cdra_config(
        VIT.build(), batches, loss, modules_to_save=['head'], budget_percent=8, num_samples=6,
        allocation='energy', progress=False,
    )  # fmt: skip
    assert config.plan.settings['num_samples'] == 8 and sum(seen) == 8


def test_progress_counts_samples(monkeypatch):
    told = []
    monkeypatch.setattr(
        'cdra_mm.peft.planning.progress_line', lambda *_, **__: lambda *now: told.append(now)
    )
    config_of(VIT, num_samples=8, allocation='energy')
    assert told == [(4, 8)]


def test_model_is_left_as_it_was():
    model = VIT.build().train()
    model.blocks[0].requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    cdra_config(model, [VIT.batch()], VIT.loss, modules_to_save=['head'], budget_percent=8)
    assert model.training and not model.blocks[0].attn.qkv.weight.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_zero_head_is_scored_through_random_weights_and_said_so():
    model = VIT.build()
    model.head.weight.data.zero_()
    with pytest.warns(UserWarning, match='head.weight is all zeros'):
        config = cdra_config(
            model, [VIT.batch()], VIT.loss, modules_to_save=['head'], budget_percent=8
        )
    assert config.plan.blocks and not model.head.weight.any()


WRONG = {
    'head': (dict(modules_to_save=['classifier']), ConfigError, "ends with 'classifier'"),
    'backbone': (dict(backbone='encoder'), ConfigError, "backbone='encoder'"),
    'setting': (dict(rank=8), ConfigError, "no setting 'rank'"),
    'statistic': (dict(statistic='median'), ConfigError, "statistic='median'"),
    'samples': (dict(num_samples=0), ConfigError, 'num_samples=0'),
    'all saved': (dict(modules_to_save=['blocks']), PlanError, 'nothing competes'),
    'no batch': (dict(batches=[]), ScoreError, 'no sample to score'),
    'head as text': (dict(modules_to_save='head'), ConfigError, 'expected a list of texts'),
    'samples as text': (dict(num_samples='4'), ConfigError, "num_samples='4': expected an int"),
    'seed': (dict(seed='a'), ConfigError, "seed='a': expected an integer"),
    'one batch': (dict(batches=dict(a=1)), ConfigError, 'batches is a dict: expected a data'),
    'no batches': (dict(batches=4), ConfigError, 'batches is a int: expected a data loader'),
    'nothing': (dict(budget_percent=1e-3), ConfigError, 'budget_percent=0.001: of .* less than on'),
    'batch': (dict(batches=[[1]], loss_fn=mean_loss), ConfigError, 'a batch is a list'),
}


@pytest.mark.parametrize('case', WRONG)
def test_wrong_settings_are_refused(case):
    given, error, message = WRONG[case]
    settings = {'batches': [VIT.batch()], 'loss_fn': VIT.loss, **given}
    with pytest.raises(error, match=message):
        cdra_config(VIT.build(), **settings)


def test_what_is_trained_whole_does_not_compete():
    name = 'blocks.0.attn.qkv.weight'
    config = config_of(VIT, also_train=[name], budget_percent=40)
    assert list(config.plan.also_train) == [name] and config.plan.blocks
    assert not any(block.name.startswith(name) for block in config.plan.blocks)


def test_start_of_columns_in_another_order_follows_them():
    block = Block('blocks.0.attn.proj.weight', (32, 32), (7, 1, 4), (9, 2, 5), 2, 3)
    start = torch.arange(6.0).reshape(2, 3)
    config = CdraConfig(plan=Plan(blocks=(block,)), start={block.name: start})
    model = get_peft_model(VIT.build(), config)
    (adapter,) = model.base_model.model.blocks[0].attn.proj.cdra.named('default').children()
    full = torch.zeros(2, 32)
    full[:, torch.tensor(block.cols)] = start
    assert torch.equal(adapter.down, full[:, [2, 5, 9]])
    assert config.plan.blocks[0].cols == (2, 5, 9)


def test_model_without_a_loss_is_refused():
    batch = dict(pixel_values=torch.randn(2, 3, 32, 32))
    with pytest.raises(ConfigError, match='gave no loss'):
        cdra_config(DINO.build(), [batch], modules_to_save=['classifier'])
