"""What would end a run at its first step, checkpoint or validation is refused before it begins.

And what only a class of the user's looks at is not; nor what mmengine takes.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import LOOPS, OPTIM_WRAPPERS
from mmengine.runner import EpochBasedTrainLoop, Runner, ValLoop
from mmpretrain.models import ImageClassifier, LinearClsHead
from mmseg.engine import SegVisualizationHook
from torch import nn

from cdra_mm.core import ConfigError
from cdra_mm.mm.config_words import check_run_words
from cdra_mm.mm.late_faults import check_late_words

IOU = dict(type='mmseg.IoUMetric')
TOP = dict(type='mmpretrain.Accuracy')


def classifier(cls=ImageClassifier, head=LinearClsHead):
    """One of seven classes."""
    model = cls.__new__(cls)
    nn.Module.__init__(model)
    model.head = head(7, 4)
    return model


def runner(*hooks, model=None, **cfg):
    """One that has not begun."""
    return SimpleNamespace(
        hooks=hooks,
        save_checkpoint=partial(Runner.save_checkpoint, None),
        cfg=Config({'val_cfg': {}, **cfg}),
        model=model or classifier(),
    )


def keeps(save_best):
    return CheckpointHook(save_best=save_best, rule='greater')


@pytest.mark.parametrize(('evaluator', 'save_best'), [
    (IOU, 'mIoU'), (IOU, ['aAcc', 'mAcc']), (IOU, 'auto'), (IOU, None),
    (dict(IOU, iou_metrics=['mDice']), 'mDice'), (dict(IOU, iou_metrics='mIoU'), 'mIoU'),
    (dict(IOU, iou_metrics=['mFscore']), 'mRecall'), (dict(IOU, prefix='val'), 'val/mIoU'),
    (dict(IOU, prefix=''), 'mIoU'), ([IOU, dict(IOU, prefix='other')], 'other/mIoU'),
    (dict(IOU, iou_metrics=['x'], format_only=True), 'mIoU'),  # not looked at
    ([IOU, dict(TOP, topk=(1, 5))], ['mIoU', 'accuracy/top5']),
    (dict(TOP, topk=np.int64(5)), 'accuracy/top5'), (dict(TOP, topk=range(1, 4)), 'accuracy/top3'),
    (dict(TOP, thrs=(0.0, None)), 'accuracy/top1_no-thr'),
    (dict(TOP, thrs={0.1, 0.2}), 'accuracy/top1_thr-0.10'), (dict(TOP, thrs=None), 'accuracy/top1'),
    ([IOU, dict(type='mmpretrain.SingleLabelMetric')], 'single-label/recall'),  # not all are known
    (dict(type='Evaluator', metrics=[IOU]), 'mIou'), (dict(type='.'), 'mIou'), ({}, 'mIou'),
])  # fmt: skip
def test_figures_that_a_validation_gives_can_be_the_best(evaluator, save_best):
    check_late_words(runner(keeps(save_best), val_evaluator=evaluator), 'train')


@pytest.mark.parametrize(('evaluator', 'save_best', 'message'), [
    (IOU, 'mIou', r"figure to save_best 'mIou' \(did you mean 'mIoU'\?\): expected one of aAcc, m"),
    (IOU, ['mIoU', 'mDice'], "save_best 'mDice'"),
    (dict(IOU, prefix='val'), 'mIoU', "save_best 'mIoU' .*'val/mIoU'"),
    (dict(IOU, iou_metrics=['mIOU']), None, "^val_evaluator.iou_metrics=.*IoUMetric cannot comp"),
    (dict(IOU, iou_metrics=3), None, 'iou_metrics=3: IoUMetric cannot compute it: expected some'),
    (dict(IOU, iou_metrics=['mFscore'], beta='x'), None, "cannot compute it with beta='x': "),
    ([TOP, dict(IOU, iou_metrics=['IoU'])], None, '^val_evaluator.1.iou_metrics='),
    ([IOU, TOP], 'accuracy/top5', "save_best 'accuracy/top5'"),
    ([IOU, dict(IOU, iou_metrics=['mDice'])], None, "^val_evaluator.1 gives the figure 'aAcc'"),
    (dict(TOP, topk=(1, 8)), None, '^val_evaluator.topk=.1, 8.: the head has 7 classes'),
    (dict(TOP, topk=[]), None, 'topk=.*: expected an integer of at least 1, or several'),
    (dict(TOP, topk='one'), None, "topk='one': expected an integer"),
])  # fmt: skip
def test_a_figure_that_a_validation_lacks_is_refused(evaluator, save_best, message):
    with pytest.raises(ConfigError, match=message):
        check_late_words(runner(keeps(save_best), val_evaluator=evaluator), 'train')


class OwnModel(ImageClassifier):
    """May give figures of its own in ``val_step``."""


class OwnHead(LinearClsHead):
    """May predict labels alone, of which there is one figure."""


class OwnFigure(Hook):
    """Adds a figure to those of the metrics."""

    def after_val_epoch(self, runner, metrics=None):
        metrics['mine'] = 1.0


@LOOPS.register_module()
class OwnValidation(ValLoop):
    """Gives what it likes."""


@pytest.mark.parametrize('changes', [
    dict(model=classifier(OwnModel)),
    dict(val_cfg=dict(type='OwnValidation')),
    dict(val_cfg=None),
])  # fmt: skip
def test_a_figure_of_the_users_own_can_be_the_best(changes):
    check_late_words(runner(keeps('mine'), val_evaluator=TOP, **changes), 'train')


def test_a_figure_that_a_hook_adds_can_be_the_best():
    check_late_words(runner(keeps('mine'), OwnFigure(), val_evaluator=TOP), 'train')
    check_late_words(
        runner(keeps('x'), model=classifier(head=OwnHead), val_evaluator=dict(TOP, topk=9)), 'train'
    )


def test_stopping_early_by_a_figure_that_there_is_not_is_refused():
    hook = partial(EarlyStoppingHook, rule='greater')
    with pytest.raises(ConfigError, match="no figure to monitor 'accuracy/top_1' .did you mean"):
        check_late_words(
            runner(hook(monitor='accuracy/top_1', strict=True), val_evaluator=TOP), 'train'
        )
    check_late_words(runner(hook(monitor='accuracy/top_1'), val_evaluator=TOP), 'train')


def test_a_test_asks_for_its_own_evaluator_alone():
    wrong = dict(
        val_evaluator=dict(TOP, topk=9),
        optim_wrapper=dict(clip_grad=dict(max_nrm=1)),
        train_cfg=dict(val_interval=0),
    )
    check_late_words(runner(keeps('mine'), **wrong), 'test')
    check_late_words(runner(test_evaluator=dict(TOP, topk=9)), 'train')
    with pytest.raises(ConfigError, match=r'^test_evaluator.topk=9: the head has 7 classes'):
        check_late_words(runner(test_evaluator=dict(TOP, topk=9)), 'test')


@OPTIM_WRAPPERS.register_module()
class OwnWrapper(OptimWrapper):
    """Clips as it likes."""


@LOOPS.register_module()
class OwnLoop(EpochBasedTrainLoop):
    """Validates when it likes."""


@pytest.mark.parametrize('cfg', [
    dict(train_cfg=dict(val_interval=2.5)), dict(train_cfg=dict(val_interval=np.int64(2))),
    dict(train_cfg=dict(val_interval=-1)), dict(train_cfg=dict(val_interval=0), val_cfg=None),
    dict(train_cfg=dict(val_interval=0, dynamic_intervals=[(1, 1)])),
    dict(train_cfg=dict(type='OwnLoop', val_interval='auto')),
    dict(optim_wrapper=dict(type='OwnWrapper', clip_grad=dict(mode='agc'))),
    dict(optim_wrapper=dict(clip_grad=dict(type='value', clip_value=0.1))),
    dict(optim_wrapper=dict(clip_grad=dict(max_norm=1, norm_type='inf', foreach=True))),
    dict(optim_wrapper=dict(clip_grad=None)), dict(optim_wrapper=dict(clip_grad=dict(type=[]))),
])  # fmt: skip
def test_what_runs_is_taken(cfg):
    check_late_words(runner(**cfg), 'train')


@pytest.mark.parametrize(('cfg', 'message'), [
    (dict(train_cfg=dict(val_begin='x')), "train_cfg.val_begin='x': expected a number"),
    (dict(train_cfg=dict(val_interval=None)), 'train_cfg.val_interval=None: expected a number'),
    (dict(optim_wrapper=dict(clip_grad=dict(type='value', clip_value='x'))), "take clip_value='x'"),
    (dict(optim_wrapper=dict(clip_grad=dict(type='value', max_norm=1))), "no setting 'max_norm'"),
])  # fmt: skip
def test_what_does_not_run_is_refused(cfg, message):
    with pytest.raises(ConfigError, match=message):
        check_late_words(runner(**cfg), 'train')


def test_an_evaluator_is_no_tuple():
    with pytest.raises(ConfigError, match=r'val_evaluator=\(.*\): expected a dict or a list'):
        check_run_words(Config(dict(val_evaluator=(IOU,))), ('mmseg',))


class Seldom(SegVisualizationHook):
    """A user's hook whose interval is what it makes of it."""


def test_an_interval_of_a_hook_of_a_library_is_a_number():
    def shows(kind, interval):
        hook = kind.__new__(kind)  # its own __init__ needs a visualizer, and does not look at it
        hook.interval = interval
        return runner(hook)

    with pytest.raises(ConfigError, match="SegVisualizationHook: interval='ten': expected a numb"):
        check_late_words(shows(SegVisualizationHook, 'ten'), 'train')
    check_late_words(shows(Seldom, 'ten'), 'train')
    check_late_words(shows(SegVisualizationHook, 10), 'train')


class KeepsAWord(CheckpointHook):
    """A user's hook that takes its own word out of what the runner is given."""

    def before_train(self, runner):
        self.tag = self.args.pop('tag')


def test_words_of_a_hook_of_the_user_are_left_to_it():
    check_late_words(runner(KeepsAWord(tag=1)), 'train')
    for word in ('tag', 'meta'):  # the other the hook gives to the runner itself
        with pytest.raises(ConfigError, match=f"CheckpointHook has no setting '{word}'"):
            check_late_words(runner(CheckpointHook(**{word: 1})), 'train')
