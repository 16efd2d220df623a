"""Whether what a run has planned is what its optimizer trains: asked at the first iteration.

Other hooks, an optimizer's ``custom_keys`` or the model's own ``train()`` may have changed it by
then. What is found is said once and by name; a run that would train nothing of its plan, or
something that its checkpoints do not hold, ends there.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import Tensor, nn

from cdra_mm.core.adapters.adapted import plan_of, planned_parameters
from cdra_mm.errors import ConfigError, PlanError
from cdra_mm.spelling import first_of

from .backbone import find_backbone
from .checkpoints.record import Record
from .optimizer_parameters import named_optimizers, trained_parameters
from .planning.withheld import frozen_by_train
from .rebuild import plain_model

__all__ = ['TrainingWatch', 'check_stays_trained']

NAMED = 3


def check_stays_trained(model: nn.Module, backbone: nn.Module) -> None:
    """Checks that the model's own ``train()`` freezes nothing that is planned.

    Raises:
        PlanError: Names what it freezes.
    """
    lost = frozen_by_train(model, backbone)
    if lost:
        raise PlanError(
            f'train() of {type(model).__name__} or of its {type(backbone).__name__} freezes '
            f'{len(lost)} parameters that the plan trains ({first_of(lost, NAMED)}): have it leave '
            "them alone (frozen_stages=-1?), or use the method 'linear'"
        )


class TrainingWatch(Hook):
    """Compares plan, gradients and optimizer once, after all other hooks of the first iteration.

    Args:
        record: Gives the record of the run, None as long as there is none.
    """

    priority = 'LOWEST'

    def __init__(self, record: Callable[[], Record | None]) -> None:
        self.record = record
        self._begun = False
        self._waiting: dict[int, str] = {}  # trained, without a gradient so far: id -> name
        self._handles: list[Any] = []
        self._resting: list[dict[str, Any]] = []  # groups whose rate was never above 0

    def trained(self, runner: Runner) -> dict[int, nn.Parameter]:
        """What the optimizer has trained so far, or is about to train, by id."""
        resting = {id(p) for group in self._resting for p in group['params']}
        held = trained_parameters(runner.optim_wrapper)
        if not self._begun:
            return held
        every = trained_parameters(runner.optim_wrapper, at_any_rate=True)
        return {key: parameter for key, parameter in every.items() if key not in resting}

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Compares plan and optimizer.

        Raises:
            ConfigError: If nothing of the plan, or something beside it, would be trained.
        """
        if self._begun:
            self._resting = [g for g in self._resting if not float(g['lr']) > 0]
            return
        held = trained_parameters(runner.optim_wrapper)
        groups = [g for _, o in named_optimizers(runner.optim_wrapper) for g in o.param_groups]
        self._resting = [g for g in groups if not any(id(p) in held for p in g['params'])]
        self._begun = True
        record = self.record()
        if record is None:
            return
        backbone = find_backbone(plain_model(runner))
        self._compare(runner, backbone, record, held)
        for name, parameter in backbone.named_parameters():
            if parameter.requires_grad:
                self._waiting[id(parameter)] = name
                handle = parameter.register_post_accumulate_grad_hook(self._arrived)
                self._handles.append(handle)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Names what got no gradient in the first iteration."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._waiting and is_main_process():
            MMLogger.get_current_instance().warning(
                f'{len(self._waiting)} backbone parameters are to be trained and got no gradient '
                f'in the first iteration ({first_of(self._waiting.values(), NAMED)}): the loss '
                'does not depend on them, or not for every batch'
            )
        self._waiting = {}

    def _arrived(self, parameter: Tensor) -> None:
        self._waiting.pop(id(parameter), None)

    def _compare(
        self, runner: Runner, backbone: nn.Module, record: Record, held: Mapping[int, nn.Parameter]
    ) -> None:
        own = dict(backbone.named_parameters())
        plan = plan_of(backbone) if record.plan is not None else None
        if plan is None:  # the whole backbone, but for what it freezes itself
            planned = {name: p for name, p in own.items() if p.requires_grad}
        else:
            planned = planned_parameters(backbone, plan)
            _refuse_undeclared(own, planned, held, record)
        every = trained_parameters(runner.optim_wrapper, at_any_rate=True)
        idle: dict[str, list[str]] = defaultdict(list)
        for name, parameter in own.items():
            if id(parameter) in held or not (name in planned or parameter.requires_grad):
                continue
            if not parameter.requires_grad:
                why = 'are frozen'
            elif id(parameter) in every:
                why = 'have a learning rate of 0'
            else:
                why = 'are in no optimizer'
            idle[why].append(name)
        words = '; '.join(
            f'{len(names)} {why} ({first_of(names, NAMED)})' for why, names in idle.items()
        )
        if planned and not any(id(parameter) in held for parameter in planned.values()):
            raise ConfigError(
                f'nothing of the backbone would be trained, of {len(planned)} planned parameters: '
                f'{words}; look at paramwise_cfg (lr_mult) of the optim_wrapper and at hooks that '
                "set requires_grad, or use the method 'linear'"
            )
        logger = MMLogger.get_current_instance()
        if idle and is_main_process():
            logger.warning(
                'some backbone parameters are planned, or ask for a gradient, and are not trained: '
                f'{words}; look at paramwise_cfg (lr_mult) of the optim_wrapper and at hooks that '
                'set requires_grad'
            )
        inside = {id(parameter) for parameter in own.values()}
        size = sum(parameter.numel() for key, parameter in held.items() if key in inside)
        rest = sum(parameter.numel() for parameter in held.values()) - size
        logger.info(f'the optimizer trains {size:,} parameters of the backbone and {rest:,} others')


def _refuse_undeclared(
    own: Mapping[str, nn.Parameter],
    planned: Mapping[str, nn.Parameter],
    held: Mapping[int, nn.Parameter],
    record: Record,
) -> None:
    """Weights that are left out of checkpoints must not change."""
    extra = [n for n in record.left_out if n in own and n not in planned and id(own[n]) in held]
    if extra:
        raise ConfigError(
            f'the optimizer trains {len(extra)} backbone parameters beside the plan '
            f'({first_of(extra, NAMED)}), which checkpoints would not hold: name them in '
            'also_train, or take out the hook that has put them into the optimizer'
        )
