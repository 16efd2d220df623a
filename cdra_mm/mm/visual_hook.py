"""What a run's visualizer gets to see of its adapters: maps of the plan, and how they grow.

Everything goes to the back ends of the run's own ``visualizer`` (``LocalVisBackend``,
``TensorboardVisBackend``, ``WandbVisBackend`` ...), nothing to the console:

    cdra_ranks, cdra_parameters    images at the start: the plan by layer and kind of weight
    cdra/percent_of_backbone       scalars at the start: the trained share of the backbone,
    cdra/share_of_budget           and of the budget where the method has one
    cdra/relative_change/<role>    scalars at the logger's interval; see `AdapterGrowth`
    cdra/parameter_norm/<kind>
    cdra/rank_in_use
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import Runner
from mmengine.visualization.vis_backend import BaseVisBackend

from cdra_mm.core import count_parameters
from cdra_mm.core.planning.plan_positions import with_positions
from cdra_mm.methods import Method
from cdra_mm.pictures import draw_map, map_of, pixels_of, styled
from cdra_mm.pictures.plan_map import positions_of

from .adapter_growth import AdapterGrowth
from .backbone import find_backbone
from .checkpoints.record import Record
from .host.runner_parts import visual_backends
from .optimizer_parameters import trained_parameters
from .rebuild import plain_model

__all__ = ['VisualHook']

INTERVAL = 10  # iterations, as the LoggerHook's default, where there is none
PICTURES = ('ranks', 'parameters')


class VisualHook(Hook):
    """Shows a run's plan and adapters through mmengine's visualizer.

    Without a back end it does nothing; where no back end takes images, matplotlib is not loaded.

    Args:
        method: The run's method.
        record: Gives the record of the run, None as long as there is none.
    """

    priority = 'LOW'

    def __init__(self, method: Method, record: Callable[[], Record | None]) -> None:
        self.method, self.record = method, record
        self.growth: AdapterGrowth | None = None
        self.interval = INTERVAL

    def before_train(self, runner: Runner) -> None:
        """Shows the plan."""
        record = self.record()
        backends = visual_backends(runner) if is_main_process() else ()
        if record is None or record.plan is None or not backends:
            return
        for hook in runner.hooks:
            if isinstance(hook, LoggerHook):
                self.interval = hook.interval
        backbone = find_backbone(plain_model(runner))
        plan = record.plan
        self.growth = AdapterGrowth(backbone)
        _, total = count_parameters(backbone)
        held = trained_parameters(runner.optim_wrapper)
        trained = sum(p.numel() for p in backbone.parameters() if id(p) in held)
        scalars = {'percent_of_backbone': 100 * trained / total}
        budget = _budget_params(self.method, total)
        if budget:
            scalars['share_of_budget'] = trained / budget
        self._show(runner, scalars, runner.iter)
        if any(_takes_images(backend) for backend in backends):
            positions = positions_of(with_positions(plan, backbone))
            for what in PICTURES:
                plan_map = map_of(plan, what, positions)
                if plan_map.values:
                    with styled():
                        pixels = pixels_of(draw_map(plan_map))
                    runner.visualizer.add_image(f'cdra_{what}', pixels, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Shows how the adapters grow."""
        if self.growth is not None and self.every_n_train_iters(runner, self.interval):
            self._show(runner, self.growth.scalars(), runner.iter + 1)

    def _show(self, runner: Runner, scalars: dict[str, float], step: int) -> None:
        named = {f'cdra/{name}': value for name, value in scalars.items()}
        if named:
            runner.visualizer.add_scalars(named, step=step)


def _takes_images(backend: BaseVisBackend) -> bool:
    """Whether a back end does anything with an image."""
    return type(backend).add_image is not BaseVisBackend.add_image


def _budget_params(method: Method, total: int) -> int | None:
    """The budget of a method in trainable parameters of a backbone of `total`, if it has one."""
    percent = getattr(method, 'budget_percent', None)
    given: int | None = getattr(method, 'budget_params', None)
    return given if percent is None else int(total * percent / 100)
