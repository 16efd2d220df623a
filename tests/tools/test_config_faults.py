"""A word or value of a config that OpenMMLab cannot take ends a command in one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from cdra_mm.mm.config_faults import config_fault
from cdra_mm.mm.config_words import check_run_words

from .project import call, make_project, refusal


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp('faults'))


def train(project, *options):
    return call(project, 'train', 'block.py', '--work-dir', 'out', '--cfg-options', *options)


@pytest.mark.parametrize(('option', 'message'), [
    ('model.head.num_clases=3',
     "model.head: LinearClsHead has no setting 'num_clases' (did you mean 'num_classes'?): "
     'expected one of num_classes, in_channels, init_cfg, loss, '),  # its base's, too
    ('optim_wrapper.optimizer.fusd=True',
     "optim_wrapper.optimizer: AdamW has no setting 'fusd' (did you mean 'fused'?)"),
    ('randomness.sed=1', "randomness: there is no setting 'sed' (Runner.set_randomness() got an "),
    ('train_dataloader.dataset.clases=1',
     'train_dataloader.dataset (CustomDataset) cannot be built: CustomDataset has no setting '
     "'clases' (did you mean 'classes'?): expected one of "),
    ('train_dataloader.dataset.pipeline.0.type=LoadImageFromFil',
     'train_dataloader.dataset (CustomDataset) cannot be built: '
     "type='LoadImageFromFil': there is no transform of this name (did you mean "),
    ('train_cfg.max_epochs=two',
     'train_cfg: EpochBasedTrainLoop cannot be built: ValueError: invalid literal'),
    ('default_scope=mmsegg',
     "default_scope 'mmsegg' is unknown (did you mean 'mmseg'?): expected one of mmengine, mm"),
    ('log_level=WARN2', "log_level 'WARN2' is unknown (did you mean 'WARNING'?): expected one of "),
    ('randomness.seed=x', "randomness.seed='x': expected a count of at least 0, or None"),
    ('randomness=3', 'randomness=3: expected a dict such as dict(seed=0)'),
    ('optim_wrapper.accumulativ=2', "optim_wrapper: OptimWrapper has no setting 'accumulativ'"),
    ('train_cfg.max_epoch=3',
     "train_cfg: EpochBasedTrainLoop has no setting 'max_epoch' (did you mean 'max_epochs'?)"),
    ('default_hooks.checkpoint.intervall=3',
     "CheckpointHook has no setting 'intervall' (did you mean 'interval'?)"),
    ('model.backbone.type=VisonTransformer',
     "model.backbone: type='VisonTransformer': there is no model of this name (did you mean "
     "'VisionTransformer'?); a class of your own needs custom_imports"),
    ('optim_wrapper.optimizer.type=AdmW',
     "optim_wrapper.optimizer: type='AdmW': there is no optimizer of this name (did you mean "
     "'AdamW'?)"),
    ('default_hooks.logger.typ=LoggerHook',
     'default_hooks.logger: the type is missing (given: typ)'),
    ('param_scheduler.type=StepLR', 'param_scheduler: StepLR needs '),
    ('model.backbone.arch=tiny2',
     'model.backbone: VisionTransformer cannot be built: AssertionError: Arch tiny2 is not in '),
    ('train_dataloader.batch_size=0', 'train_dataloader: DataLoader cannot be built: ValueError: '),
])  # fmt: skip
def test_fault_of_a_config_is_one_line_with_its_place(project, option, message):
    line = refusal(train(project, option))
    assert line.startswith(f'error: {message}')
    assert not list((project / 'out').glob('*.pth'))


def test_a_word_at_several_places_names_them(project):
    line = refusal(train(project, *(f'{s}_dataloader.pin_memry=True' for s in ('train', 'val'))))
    assert line.startswith("error: train_dataloader, val_dataloader: DataLoader has no setting '")


def fault(raising):
    """What is told of the error of a function that is called with a config at hand."""
    cfg = Config(dict(model=dict(type='Own', depth=3), head=dict(size=1)))
    with pytest.raises(Exception) as caught:
        raising(cfg)
    return config_fault(caught.value)


class Own(nn.Module):
    """A user's class that has a bug."""

    def __init__(self, bug, depth=1):
        super().__init__()
        self.bug = bug
        bug()


def passes_a_word_that_no_config_holds():
    nn.Linear(1, 1, biass=True)


def reads_a_text_as_a_number():
    int('many')


@pytest.mark.parametrize('bug', [passes_a_word_that_no_config_holds, reads_a_text_as_a_number])
def test_bug_in_a_class_of_the_user_keeps_its_traceback(bug):
    DefaultScope.get_instance('own', scope_name='mmengine')

    def build(cfg):
        MODELS.build({**cfg.model, 'type': Own, 'bug': bug})

    assert fault(build) is None


def test_word_that_a_function_is_given_while_it_runs_keeps_its_traceback():
    def run(cfg):
        def forward(x):
            return x

        forward(1, depth=cfg.model.depth)

    assert fault(run) is None


def test_word_that_a_builder_gives_by_itself_keeps_its_traceback():
    def build_layer(cfg):
        nn.Linear(1, 1, biass=True)

    assert fault(build_layer) is None


class Model(BaseModel):
    """A backbone of 3 channels under a head."""

    def __init__(self, given, expected):
        super().__init__()
        self.backbone, self.head = nn.Linear(given, 3), nn.Linear(expected, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.head(self.backbone(inputs))


@pytest.mark.parametrize(('given', 'expected', 'told'), [
    (2, 4, 'model.head (Linear) is given another width than it was built for: '),
    (5, 3, None),  # what the backbone is given is no setting of the head
])  # fmt: skip
def test_misfit_is_told_of_a_head_alone(given, expected, told):
    found = fault(lambda cfg: Model(given, expected)(torch.zeros(1, 2)))
    assert found is None if told is None else str(found).startswith(told)


@pytest.mark.parametrize('given', [
    dict(randomness=dict(seed=np.int64(3))), dict(randomness=dict(seed=None)), dict(log_level=20),
    dict(log_level='WARN'), dict(default_scope=None), dict(default_scope='mmengine'),
    dict(default_scope='json'),  # any package can be one, and is imported when it is used
])  # fmt: skip
def test_words_that_mmengine_can_take_are_taken(given):
    check_run_words(Config(given), ())
