"""A word or value of a config that OpenMMLab cannot take ends a command in one line."""

from __future__ import annotations

import pkgutil

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import HOOKS, MODELS
from torch import nn

from cdra_mm import commands
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
    ('randomness.sed=1', "randomness has no setting 'sed' (did you mean 'seed'?): expected one"),
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
    ('randomness.seed=x', "randomness.seed='x': expected an integer from 0 to 2**32 - 1"),
    ('randomness=3', 'randomness=3: expected a dict such as dict(seed=0)'),
    ('randomness=None', 'randomness=None: expected a dict such as dict(seed=0)'),
    ('log_level=1.5', 'log_level=1.5: expected one of DEBUG, INFO, '),
    ('default_hooks=[1]', 'default_hooks=[1]: expected a dict'),
    ('train_dataloader=[1]', 'train_dataloader=[1]: expected a dict'),
    ('custom_hooks=EMAHook', "custom_hooks='EMAHook': expected a list"),
    ('val_evaluator=Accuracy', "val_evaluator='Accuracy': expected a dict or a list"),
    ('default_hooks.logger.priority=HIGHH', 'default_hooks: the type is missing (given: nothing)'),
    ('model.backbone.norm_cfg.type=BNN', 'model.backbone: VisionTransformer cannot be built: '),
    ('optim_wrapper.paramwise_cfg=3',
     'optim_wrapper cannot be built: TypeError: paramwise_cfg should be '),
    ('optim_wrapper.accumulativ=2', "optim_wrapper: OptimWrapper has no setting 'accumulativ'"),
    ('train_cfg.max_epoch=3',
     "train_cfg: EpochBasedTrainLoop has no setting 'max_epoch' (did you mean 'max_epochs'?)"),
    # What would end a run when its first step, checkpoint or validation is due.
    ('optim_wrapper.clip_grad.max_nrm=1',
     "optim_wrapper.clip_grad has no setting 'max_nrm' (did you mean 'max_norm'?): expected one of "
     'max_norm, norm_type, '),
    ('optim_wrapper.clip_grad.norm_type=1', 'optim_wrapper.clip_grad needs max_norm, which '),
    ('optim_wrapper.clip_grad.max_norm=one',
     "optim_wrapper.clip_grad: clip_grad_norm_ of torch cannot take max_norm='one': "),
    ('train_cfg.val_interval=two', "train_cfg.val_interval='two': expected a number"),
    ('train_cfg.val_interval=0', 'train_cfg.val_interval=0: expected at least 1'),
    ('default_hooks.checkpoint.interval=x', "CheckpointHook: interval='x': expected a number"),
    ('default_hooks.checkpoint.save_best=accuracy/top_1',
     "CheckpointHook: val_evaluator gives no figure to save_best 'accuracy/top_1' (did you mean "
     "'accuracy/top1'?): expected one of accuracy/top1, auto"),
    ('val_evaluator.topk=5', 'val_evaluator.topk=5: the head has 2 classes, so that the best 5 '),
    ('val_evaluator.topk=one', "val_evaluator.topk='one': expected an integer of at least 1"),
    ('default_hooks.checkpoint.intervall=3',
     "CheckpointHook has no setting 'intervall' (did you mean 'interval'?)"),
    ('model.backbone.type=VisonTransformer',
     "model.backbone: type='VisonTransformer': there is no model of this name (did you mean "
     "'VisionTransformer'?); one of another package is named with it (mmpretrain.NAME), a class "
     'of your own needs custom_imports'),
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
    line = refusal(train(project, *(f'{s}_dataloader.pin_memry=True' for s in ('val', 'test'))))
    assert line.startswith("error: val_dataloader, test_dataloader: DataLoader has no setting '")


def fault(raising, config=None):
    """What is told of the error of a function that is called with a config at hand."""
    cfg = Config(config or dict(model=dict(depth=3)))
    with pytest.raises(Exception) as caught:
        raising(cfg)
    return config_fault(caught.value)


class Own(nn.Module):
    """A user's class that has a bug."""

    def __init__(self, depth, bug):
        super().__init__()
        bug(depth)


BUGS = {
    'a word that the config holds, given to another class': lambda d: nn.Linear(1, 1, depth=d),
    'a word that is missing': lambda d: nn.Linear(d),
    'a word that no config holds': lambda d: nn.Linear(1, 1, biass=True),
    'a part that it builds itself': lambda d: MODELS.build(dict(type='NoSuchClass')),
    'a wrong setting of a part that it builds itself': lambda d: HOOKS.build(
        dict(type='IterTimerHook', depth=d)
    ),
    'a text that is no number': lambda d: int('many'),
    'the words of a registry': lambda d: {}['Own is not in the mmengine::model registry'],
}


@pytest.mark.parametrize('bug', BUGS.values(), ids=BUGS)
def test_bug_in_a_class_of_the_user_keeps_its_traceback(bug):
    def build(cfg):
        MODELS.build(cfg.model)

    cfg = dict(model=dict(type=Own, depth=3, bug=bug), reg=dict(type='Own'))
    assert fault(build, cfg) is None


class HandsOn(nn.Linear):
    """A user's class that hands on what it does not know, and perhaps a word of its own."""

    def __init__(self, own=None, **words):
        super().__init__(1, 1, **words, **(own or {}))


@pytest.mark.parametrize(('words', 'told'), [
    (dict(biass=True), "model: HandsOn has no setting 'biass' (did you mean 'bias'?): expected "),
    (dict(own=dict(biass=True)), None),  # which it gives by itself
])  # fmt: skip
def test_word_that_a_class_of_the_user_hands_on_is_named(words, told):
    found = fault(lambda cfg: MODELS.build(cfg.model), dict(model=dict(type=HandsOn, **words)))
    assert found is None if told is None else str(found).startswith(told)


def test_releases_that_do_not_fit_each_other_keep_their_traceback():
    cfg = dict(model=dict(type=pkgutil.resolve_name, name='os:of_another_release'))
    assert fault(lambda cfg: MODELS.build(cfg.model), cfg) is None
    cfg = dict(model=dict(type=pkgutil.resolve_name, name='os:+'))
    assert 'model: resolve_name cannot be built: ValueError' in str(
        fault(lambda cfg: MODELS.build(cfg.model), cfg)
    )


def test_setting_of_a_part_that_holds_tensors_is_named():
    def build(cfg):
        MODELS.build(cfg.loss)

    cfg = dict(
        other=dict(a=torch.ones(2)), loss=dict(type=nn.NLLLoss, weight=torch.ones(2), wrong=1)
    )
    assert str(fault(build, cfg)).startswith("loss: NLLLoss has no setting 'wrong'")


class Odd(Exception):
    """Says nothing that can be read."""

    def __init__(self):
        super().__init__(self)

    def __str__(self):
        raise RuntimeError('odd')


def test_error_that_cannot_be_read_is_raised_itself(monkeypatch):
    def main(_):
        raise Odd

    monkeypatch.setattr(commands.train, 'main', main)
    with pytest.raises(Odd):
        commands.start(['train', 'any.py'])


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

    def __init__(self, given, head):
        super().__init__()
        self.backbone, self.head = nn.Linear(given, 3), head

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.head(self.backbone(inputs))


class OwnHead(nn.Module):
    """A user's head with a layer that does not fit its others."""

    def __init__(self, *sizes):
        super().__init__()
        self.wrong = nn.Linear(4, 1)

    def forward(self, x):
        return self.wrong(x)


@pytest.mark.parametrize(('given', 'head', 'told'), [
    (2, nn.Linear(4, 1), 'model.head (Linear) is given another width than it was built for: '),
    (5, nn.Linear(3, 1), None),  # what the backbone is given is no setting of the head
    (2, OwnHead(), None),
])  # fmt: skip
def test_misfit_is_told_of_a_head_of_a_library_alone(given, head, told):
    found = fault(lambda cfg: Model(given, head)(torch.zeros(1, 2)))
    assert found is None if told is None else str(found).startswith(told)


@pytest.mark.parametrize('given', [
    dict(randomness=dict(seed=None)), dict(log_level=20),
    dict(log_level='WARN'), dict(default_scope=None), dict(default_scope='mmengine'),
    dict(default_scope='json'),  # any package can be one, and is imported when it is used
    dict(default_scope='mylab'),  # and any word the label of a config that needs none
    dict(default_scope='__main__'),
])  # fmt: skip
def test_words_that_mmengine_can_take_are_taken(given):
    check_run_words(Config(given), ('mmseg',))
