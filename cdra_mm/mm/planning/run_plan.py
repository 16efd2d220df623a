"""How a run comes by its plan: scores on its own data, a method's decision or search, or a file."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmengine.dist import get_rank, is_main_process
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import Tensor, nn

from cdra_mm.core import Plan, fingerprint
from cdra_mm.core.adapters.apply import check_fits
from cdra_mm.core.planning.plan_positions import with_positions
from cdra_mm.core.scoring.score_sums import DTYPES
from cdra_mm.core.scoring.scores import STATISTICS
from cdra_mm.errors import ConfigError, PlanError
from cdra_mm.methods import Method, Request
from cdra_mm.progress import late_line, reported_to
from cdra_mm.spelling import did_you_mean

from ..plan_health import masses_of
from .competing import competing_targets
from .given_plan import read_plan, same_everywhere
from .kept_scores import KEEP, SCORES_FILE, Stored, adapted_masks, selected_masks, write_kept
from .scoring import score_backbone
from .supernet import trials_in
from .withheld import withheld_parameters

__all__ = ['DEFAULT_TRAINED', 'RunPlanner']

DEFAULT_TRAINED = ('cls_token',)  # where the backbone has one
SCORE_DTYPES = {str(dtype).removeprefix('torch.'): dtype for dtype in DTYPES}


@dataclass
class RunPlanner:
    """Makes the plan of a run.

    Attributes:
        method: What decides.
        num_samples: Training samples to score.
        batch_size: Samples per batch while scoring; None for the training loader's.
        statistic: ``'per_sample'``, ``'per_batch'`` or ``'summed'``; None for the method's own,
            which may be ``'mean_gradient'``.
        also_train: Backbone parameters that are trained whole.
        seed: Seed of the samples drawn and their augmentations.
        path: A plan file to use instead.
        keep_scores: What of the scores goes into the work directory: False, ``'masks'``
            or ``'all'``.
        exclude: What does not compete; see `exclude_targets`.
        also_train_in_budget: Whether `also_train` counts against a budget.
        score_dtype: Key of `SCORE_DTYPES`: what the scores are kept in.
        score_device: ``'cpu'``, or None to keep them where the backbone is.
        seconds: What scoring or a search took, and the fit of the head.
        start: First factors of the plan, by block; see `Method.first_factors`.
        masses: Sum of the scores of each target that competed; see `masses_of`.

    Raises:
        ConfigError: If a setting is out of range.
    """

    method: Method
    num_samples: int
    batch_size: int | None
    statistic: str | None
    also_train: Sequence[str]
    seed: int
    path: str | Path | None
    keep_scores: bool | str = False
    exclude: str | Sequence[str] = ()
    also_train_in_budget: bool = True
    score_dtype: str = 'float32'
    score_device: str | None = None
    seconds: float = 0.0
    start: Mapping[str, Tensor] = field(default_factory=dict)
    masses: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value, least in (
            ('num_samples', self.num_samples, 1),
            ('batch_size', self.batch_size, 1),
            ('seed', self.seed, 0),  # numpy takes no negative one
        ):
            if value is not None and value < least:
                raise ConfigError(f'{name}={value!r}: expected a count of at least {least}')
        if self.statistic is None:
            self.statistic = self.method.statistic
        signed = self.method.statistic == 'mean_gradient'
        known = ('mean_gradient',) if signed else STATISTICS
        if self.statistic not in known:
            raise ConfigError(
                f'statistic={self.statistic!r}: expected one of {", ".join(known)}'
                + (' with this allocation' if signed else '')
            )
        if self.path is not None and (not str(self.path) or '\0' in str(self.path)):
            raise ConfigError(f'plan={str(self.path)!r}: expected the path of a cdra_plan.json')
        if self.keep_scores is not False and self.keep_scores not in KEEP:
            raise ConfigError(f"keep_scores={self.keep_scores!r}: expected False, 'masks' or 'all'")
        if self.score_dtype not in SCORE_DTYPES:
            raise ConfigError(
                f'score_dtype={self.score_dtype!r}: expected one of {", ".join(SCORE_DTYPES)}'
            )
        if self.score_device not in (None, 'cpu'):
            raise ConfigError(
                f"score_device={self.score_device!r}: expected 'cpu', or None to keep the scores "
                'where the backbone is'
            )
        also = self.also_train
        self.also_train = (also,) if isinstance(also, str) else tuple(also)
        out = self.exclude
        self.exclude = (out,) if isinstance(out, str) else tuple(out)

    @property
    def settings(self) -> dict[str, Any]:
        """What makes two runs train the same thing; plain types."""
        settings = {f'method.{key}': value for key, value in self.method.recorded.items()}
        if self.method.needs_scores:
            settings |= {'num_samples': self.num_samples, 'statistic': self.statistic}
            settings |= {'also_train': list(self.also_train), 'seed': self.seed}
            settings |= self._given
        if self.method.needs_search:
            settings |= {'seed': self.seed}
        return {'method': self.method.name, **settings}

    @property
    def follows_gradient(self) -> bool:
        """Whether the mean gradient decides what is trained, or where its factors begin."""
        decides = self.method.needs_scores and self.statistic == 'mean_gradient'
        return decides and (self.path is None or self.method.needs_start)

    def plan(self, runner: Runner, backbone: nn.Module, digests: Mapping[str, str]) -> Plan | None:
        """The plan for a backbone with its pretrained weights, the same on every rank.

        Returns:
            The plan, or None to train the whole backbone.

        Raises:
            ConfigError: If the backbone lacks what is to be trained whole.
            PlanError: If nothing is left to train, or a plan file trains what cannot be trained.
        """
        if self.keep_scores and (self.path or not self.method.needs_scores):
            why = (
                'the plan comes from a file' if self.path else f'{self.method.name} uses no scores'
            )
            MMLogger.get_current_instance().info(f'keep_scores: nothing to keep, {why}')
        if self.exclude and (self.path or not self.method.needs_scores):
            MMLogger.get_current_instance().warning(
                f'exclude={list(self.exclude)}: not used, '
                + (
                    'the plan comes from a file'
                    if self.path
                    else f'{self.method.name} has no scores'
                )
            )
        probe = bool(self.path) or self.method.trains_inside
        withheld = withheld_parameters(runner, backbone, self.seed, probe=probe)
        request = Request(backbone, withheld=withheld)
        also_train = self._trained_whole(request)
        if self.path:
            given = read_plan(self.path)
            request.check(given)
            given = with_positions(given, backbone)
            if self.method.needs_start:
                self._require_blocks(given)
                check_fits(backbone, given, digests)  # before it is scored
                inside = [block.name for block in given.blocks]
                gradients, _ = self._scored(runner, backbone, inside)
                self.start = self.method.first_factors(given, gradients)
            return given
        scores: dict[str, Tensor] = {}
        num_samples = 0
        if self.method.needs_scores:
            free = {n: t for n, t in request.targets().items() if t.path not in also_train}
            targets = competing_targets(backbone, free, self.exclude)
            scores, num_samples = self._scored(runner, backbone, targets)
        how: dict[str, Any] = {
            'statistic': self.statistic,
            'num_samples': num_samples,
            'seed': self.seed,
        }
        how |= self._given
        request = replace(
            request,
            scores=scores,
            also_train=also_train,
            settings=how if self.method.needs_scores else {},
            fingerprint=fingerprint(backbone, digests=digests) if self.method.needs_scores else '',
            beside_budget=0 if self.also_train_in_budget else sum(also_train.values()),
        )
        with reported_to(late_line if get_rank() == 0 else None):
            plan = same_everywhere(self._decide(runner, request))
        if plan is not None:
            request.check(plan)  # a method of another package may look at the backbone alone
            plan = with_positions(plan, backbone)
            self.start = self.method.first_factors(plan, scores)
            competing = self.method.competing(backbone, scores) if scores else {}
            self.masses = masses_of(competing, signed=self.statistic == 'mean_gradient')
        if self.keep_scores and scores and plan is not None and is_main_process():
            self._keep(runner.work_dir, request, plan)
        return plan

    def _require_blocks(self, given: Plan) -> None:
        """Refuses a start for a plan that has nothing to start."""
        if not given.blocks:
            raise PlanError(
                f'plan={str(self.path)!r} is of {given.method} and has no low-rank block, so no '
                'factors begin at a gradient: leave start out, or name another plan'
            )

    def _scored(
        self, runner: Runner, backbone: nn.Module, targets: Collection[str]
    ) -> tuple[dict[str, Tensor], int]:
        """See `score_backbone`; the time that it takes is noted."""
        begin = time.time()
        found = score_backbone(
            runner,
            backbone,
            num_samples=self.num_samples,
            batch_size=self.batch_size,
            statistic=str(self.statistic),
            seed=self.seed,
            score_loss=self.method.score_loss,
            targets=targets,
            dtype=SCORE_DTYPES[self.score_dtype],
            device=self.score_device,
        )
        self.seconds += time.time() - begin
        return found

    def _trained_whole(self, request: Request) -> dict[str, int]:
        """What of `also_train` there is and can be trained, name -> entries."""
        own = {name: p.numel() for name, p in request.backbone.named_parameters()}
        for name in self.also_train:
            if name in DEFAULT_TRAINED:
                continue
            if name not in own:
                raise ConfigError(
                    f'also_train: {type(request.backbone).__name__} has no parameter {name!r}'
                    f'{did_you_mean(name, list(own))}: name some of its named_parameters()'
                )
            if name in request.withheld:
                raise ConfigError(
                    f'also_train: {name!r} cannot be trained, {request.withheld[name]}: leave it '
                    'out, or change the config of the backbone'
                )
        names = [name for name in self.also_train if name in own and name not in request.withheld]
        return {name: own[name] for name in names}

    @property
    def _given(self) -> dict[str, Any]:
        """Settings that earlier releases lacked, where they are given: their runs go on."""
        given: dict[str, Any] = {'exclude': list(self.exclude)} if self.exclude else {}
        if not self.also_train_in_budget:
            given['also_train_in_budget'] = False
        if self.score_dtype != 'float32':
            given['score_dtype'] = self.score_dtype
        return given

    def _decide(self, runner: Runner, request: Request) -> Plan | None:
        """The method's plan; one that searches has the run to try plans in."""
        if not self.method.needs_search:
            return self.method.plan(request)
        begin = time.time()
        with trials_in(runner, request.backbone, self.seed) as trials:
            settings = {**request.settings, 'seed': self.seed}
            plan = self.method.plan(replace(request, trials=trials, settings=settings))
        self.seconds += time.time() - begin
        return plan

    def _keep(self, work_dir: str | Path, request: Request, plan: Plan) -> None:
        """Writes the scores of what competed, and what the plan has selected of it."""
        logger = MMLogger.get_current_instance()
        scores = self.method.competing(request.backbone, request.scores)
        masks = selected_masks(plan, scores)
        if self.statistic == 'mean_gradient':
            gradients = scores
            masks = adapted_masks(plan, gradients)
            scores = Stored(gradients, lambda name: gradients[name].square())  # one at a time
        path = Path(work_dir) / SCORES_FILE
        how = {
            **request.settings,
            'method': plan.method,
            'num_sensitive': plan.num_sensitive,
            'num_competing': plan.num_competing,
            'fingerprint': plan.fingerprint,
        }
        try:
            write_kept(path, scores, masks, what=str(self.keep_scores), meta=how)
        except PlanError as error:  # a method of another package may select in a way of its own
            logger.warning(f'keep_scores: nothing is kept; {error}')
            return
        size = path.stat().st_size / 2**20
        logger.info(f'keep_scores={self.keep_scores!r}: {path.name}, {size:.1f} MiB')
