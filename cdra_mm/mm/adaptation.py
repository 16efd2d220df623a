"""How the backbone of a run gets its adapters: by a new plan, or by that of a checkpoint."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import nn

from cdra_mm.core import (
    adapters,
    apply_plan,
    base_state,
    digests_of,
    find_targets,
    freeze_rest,
    plan_of,
)
from cdra_mm.core.adapters.copied_weights import choose_product
from cdra_mm.core.scoring.losses import require_finite
from cdra_mm.methods import Full

from .checkpoints.base_source import find_source
from .checkpoints.base_weights import check_loaded, reproduced_names
from .checkpoints.changed_config import check_asked
from .checkpoints.partial_base import describe_missing
from .checkpoints.record import Record, make_record
from .checkpoints.restoring import ensure_base
from .checkpoints.small_base import check_can_be_small, make_small
from .hook_settings import check_same_settings
from .plan_description import describe_plan
from .plan_health import plan_health
from .planning.head_fit import fit_head
from .planning.run_plan import RunPlanner
from .rebuild import plain_model
from .training_watch import check_stays_trained

__all__ = ['Adaptation']


@dataclass
class Adaptation:
    """Adapts the backbone of a run, and records how.

    Attributes:
        planner: Makes the plan of a new run.
        seed: Seed of the factors.
        save_base: Whether checkpoints hold the base.
        product: How adapted products are computed, see `choose_product`.
        head_iters: Iterations that fit the head first, see `fit_head`; None: as it does by itself
            where the mean gradient decides, none elsewhere.
        base_dtype: What the frozen base is kept in, see `checkpoints.small_base`; None: as it is.
    """

    planner: RunPlanner
    seed: int
    save_base: bool
    product: str = 'auto'
    head_iters: int | None = None
    base_dtype: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What makes two runs train the same thing; plain types."""
        own = {'head_iters': self.head_iters, 'base_dtype': self.base_dtype}
        given = {key: value for key, value in own.items() if value is not None}
        return {**self.planner.settings, **given}

    def begin(self, runner: Runner, backbone: nn.Module) -> Record:
        """A fresh run: plan on the loaded weights, then adapt.

        Returns:
            The record of the run's checkpoints.

        Raises:
            ScoreError: If a weight of the backbone is not finite.
        """
        logger = MMLogger.get_current_instance()
        model, method = plain_model(runner), self.planner.method
        source = None if self.save_base else find_source(runner, model, backbone)
        reproduced = reproduced_names(backbone, source)
        missing = check_loaded(backbone, source, reproduced)
        check_can_be_small(self.base_dtype, backbone, source, reproduced)
        trains_all = isinstance(method, Full) and not self.planner.path
        digests = {} if trains_all else digests_of(base_state(backbone))
        if source is not None and missing and not trains_all:
            also = self.planner.also_train
            logger.warning(describe_missing(backbone, source, missing, method, also))
        require_finite(backbone)
        settings = self.settings
        if self.head_iters or (self.head_iters is None and self.planner.follows_gradient):
            since, samples = time.time(), self.planner.num_samples
            iters = fit_head(runner, backbone, self.head_iters, self.seed, samples)
            settings |= {'head_iters': iters}
            self.planner.seconds += time.time() - since
        plan = self.planner.plan(runner, backbone, digests)
        if plan is not None:
            start = self.planner.start
            apply_plan(backbone, plan, seed=self.seed, digests=digests, start=start)
            self.planner.start = {}  # it is in the adapters now
            choose_product(backbone, self.product)
            plan = plan_of(backbone)
            assert plan is not None
            check_stays_trained(model, backbone)
            logger.info('\n' + describe_plan(plan, backbone))
            matrices = [n for n, t in find_targets(backbone).items() if len(t.shape) == 2]
            health = plan_health(plan, self.planner.masses, matrices)
            if health is not None:
                logger.info(health.text)
                for warning in health.warnings:
                    logger.warning(warning)
        record = make_record(
            backbone,
            method=method.name,
            plan=plan,
            settings=settings,
            base=source,
            reproduced=reproduced,
            digests=digests,
        )
        if plan is not None:
            make_small(backbone, record)
        if plan is not None and not self.save_base and not reproduced:
            logger.warning(
                'no pretrained weights were named that bring the backbone back (init_cfg or '
                'load_from): checkpoints store the frozen backbone too'
            )
        return record

    def adopt(
        self, runner: Runner, backbone: nn.Module, record: Record, *, has_base: bool = False
    ) -> Record:
        """A run that goes on with what a checkpoint has planned; it never plans again.

        Args:
            runner: The run.
            backbone: Its backbone.
            record: The record of the checkpoint.
            has_base: Whether the checkpoint was loaded already, and the base with it.

        Returns:
            The record, with the base that is in the backbone.

        Raises:
            CheckpointError: If the config asks for something else than the checkpoint has.
        """
        # What the config leaves open is as it was begun.
        asked = {'head_iters': record.settings.get('head_iters', 0)} | self.settings
        begun = record.settings.get('method.start')
        if self.planner.path and begun is not None:
            # A plan file asks for no start of its own; where the factors began is past.
            asked.setdefault('method.start', begun)
        check_same_settings(asked, record.settings)
        plan = record.plan
        check_asked(record, plan, self.planner.path, self.save_base)
        if plan is not None:
            if not has_base:
                record = ensure_base(backbone, record)
                # What is loaded next is the checkpoint: its base need not be compared once more.
                backbone.__dict__['_cdra_ensured'] = record
                # Averaged weights, which a hook loads before the model, have no record.
                backbone.__dict__['_cdra_record'] = record
            if not adapters(backbone):
                # The record's table vouches for the base.
                apply_plan(backbone, replace(plan, fingerprint=''), seed=self.seed)
            choose_product(backbone, self.product)
            freeze_rest(backbone, plan)
            make_small(backbone, record)
            check_stays_trained(plain_model(runner), backbone)
        return record
