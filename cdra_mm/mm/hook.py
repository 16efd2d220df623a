"""`CDRAHook`: when what happens in a run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from cdra_mm.core import adapters, apply_plan, base_state, digests_of, freeze_rest, save_adapter
from cdra_mm.errors import CheckpointError
from cdra_mm.last_checkpoint import pointed_at
from cdra_mm.methods import CDRA, Full, Method, check_types, find_method, make_method
from cdra_mm.storage import write_text

from .backbone import PREFIX, attach_loader, find_backbone, wrap_config
from .checkpoints.base_weights import check_loaded, find_source, named_bases, reproduced_names
from .checkpoints.changed_config import check_asked, check_optimizer_type
from .checkpoints.checked import check_fields, check_optimizer
from .checkpoints.midway import MIDWAY_KEY, go_on
from .checkpoints.own_files import claim_own_files
from .checkpoints.partial_base import describe_missing
from .checkpoints.plain_state import check_can_be_saved, same_meaning
from .checkpoints.record import Record, make_record, read_record, record_of, relied_on
from .checkpoints.restoring import ensure_base
from .checkpoints.resuming import check_parts, check_state, choose_checkpoint
from .checkpoints.saving import save_safely
from .checkpoints.slim_hook import SlimCheckpointHook
from .data_check.watch import watch
from .divergence import DivergenceHook, check_finite
from .parallel.strategies import refuse_sharding
from .planning.run_plan import DEFAULT_TRAINED, RunPlanner
from .rate_watch import RateWatch
from .rebuild import plain_model, rebuild, remember_configs
from .recompute import keep_gradients
from .report import describe_plan
from .summary import parameter_summary, plain_values, update_summary
from .training_watch import TrainingWatch, check_stays_trained
from .visual_hook import VisualHook
from .work_lock import WorkLock, hold_work_dir

__all__ = ['CDRAHook']

PLAN_FILE = 'cdra_plan.json'
ADAPTER_FILE = 'cdra_adapter.safetensors'


@HOOKS.register_module()
class CDRAHook(Hook):
    """Fine-tunes the backbone of any OpenMMLab model with CDRA-SPT or a peer.

    Before training it scores the backbone on the run's own training data, plans,
    puts the adapters in, freezes the rest and has the optimizer built again.
    Checkpoints hold what is trained and name the frozen base.

    Args:
        method: ``dict(type=name, **settings)``; see `cdra_mm.methods`.
        gamma: Setting of the method ``cdra``, given here for short.
        num_sensitive: Likewise.
        budget_params: Likewise.
        budget_percent: Likewise; 0.5 when no budget is given.
        rank_rule: Likewise.
        min_rank: Likewise.
        beta: Likewise; and so are its ablations (see `cdra_mm.methods.CDRA`).
        num_samples: Training samples to score (SPT uses 400).
        batch_size: Samples per batch while scoring; default: the training loader's.
        statistic: ``'per_sample'`` (Eq. 3) or ``'per_batch'``; see `estimate_scores`.
            Default: the method's own, ``'per_sample'`` for ``cdra``.
        exclude: What does not compete in a method that scores: roles (``'norm'``), and names of
            parameters or modules of the backbone (``'layers.0.attn.proj.weight'``,
            ``'layers.11'``).
        also_train: Names of backbone parameters that are trained whole, of any kind and place: a
            class token, a patch embedding that the base file does not bring.
        also_train_in_budget: Whether they count against ``budget_params`` and ``budget_percent``.
        seed: Seed of the samples drawn, their augmentations and the factors.
        plan: Path of a plan to use instead of scoring.
        save_base: Store the frozen base weights in every checkpoint.
        keep_scores: What of the scores goes into ``cdra_scores.safetensors`` in the work
            directory, for pictures: False, ``'masks'`` or ``'all'`` (see `kept_scores`).
        visualize: Show the plan and how the adapters grow through the run's visualizer
            (see `visual_hook`).

    Raises:
        ConfigError: If a setting is unknown or out of range.
    """

    priority = 'VERY_HIGH'

    def __init__(
        self,
        method: Mapping[str, Any] | None = None,
        *,
        num_samples: int = 400,
        batch_size: int | None = None,
        statistic: str | None = None,
        exclude: str | Sequence[str] = (),
        also_train: str | Sequence[str] = DEFAULT_TRAINED,
        also_train_in_budget: bool = True,
        seed: int = 0,
        plan: str | Path | None = None,
        save_base: bool = False,
        keep_scores: bool | str = False,
        visualize: bool = True,
        **settings: Any,
    ) -> None:
        given = {
            'num_samples': num_samples,
            'batch_size': batch_size,
            'statistic': statistic,
            'exclude': exclude,
            'also_train': also_train,
            'also_train_in_budget': also_train_in_budget,
            'seed': seed,
            'plan': plan,
            'save_base': save_base,
            'keep_scores': keep_scores,
            'visualize': visualize,
        }
        check_types(given, get_type_hints(CDRAHook.__init__))
        self.method = _method_of({} if method is None else method, settings)
        self.planner = RunPlanner(
            self.method, num_samples, batch_size, statistic, also_train, seed, plan, keep_scores,
            exclude, also_train_in_budget,
        )  # fmt: skip
        self.seed, self.save_base, self.visualize = seed, save_base, visualize
        self.record: Record | None = None
        self._configs: dict[str, Any] = {}
        self._midway: dict[str, Any] | None = None  # None: nothing was resumed
        self._metrics: dict[str, Any] = {}
        self._started = 0.0
        self._watch = TrainingWatch(lambda: self.record)
        self._lock: WorkLock | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What makes two runs train the same thing; plain types."""
        return self.planner.settings

    # Stages, in the order in which a run meets them.

    def before_run(self, runner: Runner) -> None:
        """Teaches the backbone to load adapted checkpoints, before anything is loaded."""
        refuse_sharding(runner)
        watch(runner)
        model = plain_model(runner)
        attach_loader(find_backbone(model), named_bases(runner.cfg, model))
        if runner._train_loop is not None and not isinstance(runner._train_loop, dict):
            self._configs = remember_configs(runner)
            if is_main_process():
                self._lock = hold_work_dir(runner.work_dir)
            choose_checkpoint(runner)
            save_safely(runner)
        if not any(isinstance(hook, SlimCheckpointHook) for hook in runner.hooks):
            runner.register_hook(SlimCheckpointHook(lambda: self.record))
            runner.register_hook(self._watch)
            runner.register_hook(DivergenceHook())
            runner.register_hook(RateWatch(lambda: self.record))
            if self.visualize:
                runner.register_hook(VisualHook(self.method, lambda: self.record))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Builds the adapters before a resumed optimizer state asks for their parameters."""
        if not runner._resume or not self._configs:
            return
        backbone = find_backbone(plain_model(runner))
        record = read_record(checkpoint.get('state_dict', {}), PREFIX)
        plain = record is None and isinstance(self.method, Full)
        if record is None and not plain:
            raise CheckpointError(
                'cannot resume: the checkpoint was not written by a run with CDRAHook. To start '
                'from its weights, use load_from without resume; to go on with it, remove the hook'
            )
        check_parts(checkpoint, runner)
        check_fields(checkpoint, runner)
        if record is None:
            self.record = Record(method=self.method.name)  # a plain checkpoint, a plain run
        else:
            self._adopt(runner, backbone, record)
        check_optimizer_type(checkpoint, runner)
        check_optimizer(checkpoint, runner.optim_wrapper)
        check_state(checkpoint, runner, record)
        claim_own_files(runner, checkpoint)
        current = getattr(runner.train_dataloader.dataset, 'metainfo', None)
        if same_meaning(checkpoint['meta'].get('dataset_meta'), current):
            checkpoint['meta']['dataset_meta'] = current  # mmengine compares them byte by byte
        self._midway = checkpoint.get(MIDWAY_KEY, {})

    def before_train(self, runner: Runner) -> None:
        """Scores, plans and adapts, unless a checkpoint has brought adapters along."""
        self._started = time.time()
        backbone = find_backbone(plain_model(runner))
        loaded = record_of(backbone)
        if self.record is None and loaded is not None:
            self._adopt(runner, backbone, loaded, has_base=True)
        if self.record is None:
            self._begin(runner, backbone)
        if self._midway is not None:
            go_on(runner, self._midway)
        keep_gradients(plain_model(runner))
        wrap_config(runner, self.record.base if self.record else None)
        check_can_be_saved(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Notes the metrics for the summary."""
        self._metrics = dict(metrics or {})

    def after_train(self, runner: Runner) -> None:
        """Writes the adapter file and the summary."""
        check_finite(runner)
        if not is_main_process() or self.record is None:
            return
        backbone = find_backbone(plain_model(runner))
        seconds = time.time() - self._started
        sizes = {}
        last = pointed_at(runner.work_dir)
        if last is not None and last.is_file():
            sizes['checkpoint_bytes'] = last.stat().st_size
        if self.record.plan:
            path = Path(runner.work_dir) / ADAPTER_FILE
            metrics = plain_values(self._metrics)
            save_adapter(backbone, path, metrics=metrics, **relied_on(backbone, self.record))
            sizes['adapter_bytes'] = path.stat().st_size
        update_summary(
            runner.work_dir,
            {
                'method': self.method.name,
                **parameter_summary(backbone, self._watch.trained(runner)),
                **sizes,
                'metrics': self._metrics,
                'scoring_seconds': self.planner.seconds,
                'training_seconds': seconds - self.planner.seconds,
            },
        )

    def after_run(self, runner: Runner) -> None:
        """Gives the work directory free."""
        self._lock = None

    def after_test_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Adds the test metrics to the summary of the work directory."""
        if is_main_process():
            update_summary(runner.work_dir, {'test_metrics': dict(metrics or {})})

    # What the stages do.

    def _begin(self, runner: Runner, backbone: nn.Module) -> None:
        """A fresh run: plan on the loaded weights, then adapt."""
        logger = MMLogger.get_current_instance()
        model = plain_model(runner)
        source = None if self.save_base else find_source(runner, model, backbone)
        reproduced = reproduced_names(backbone, source)
        missing = check_loaded(backbone, source, reproduced)
        trains_all = isinstance(self.method, Full) and not self.planner.path
        digests = {} if trains_all else digests_of(base_state(backbone))
        if source is not None and missing and not trains_all:
            also = self.planner.also_train
            logger.warning(describe_missing(backbone, source, missing, self.method, also))
        plan = self.planner.plan(runner, backbone, digests)
        if plan is not None:
            apply_plan(backbone, plan, seed=self.seed, digests=digests)
            check_stays_trained(model, backbone)
            logger.info('\n' + describe_plan(plan, backbone))
        self.record = make_record(
            backbone,
            method=self.method.name,
            plan=plan,
            settings=self.settings,
            base=source,
            reproduced=reproduced,
            digests=digests,
        )
        if plan is not None and not self.save_base and not reproduced:
            logger.warning(
                'no pretrained weights were named that bring the backbone back (init_cfg or '
                'load_from): checkpoints store the frozen backbone too'
            )
        rebuild(runner, self._configs)
        self._write_plan(runner)

    def _adopt(
        self, runner: Runner, backbone: nn.Module, record: Record, *, has_base: bool = False
    ) -> None:
        """A run that goes on with what a checkpoint has planned; it never plans again.

        Args:
            runner: The run.
            backbone: Its backbone.
            record: The record of the checkpoint.
            has_base: Whether the checkpoint was loaded already, and the base with it.
        """
        differ = sorted(
            key
            for key in self.settings.keys() | record.settings.keys()
            if self.settings.get(key) != record.settings.get(key)
        )
        if differ:
            key = 'method' if 'method' in differ else differ[0]
            raise CheckpointError(
                f'the checkpoint was made with {key}={record.settings.get(key)!r}, the config says '
                f'{self.settings.get(key)!r}: use the settings of the checkpoint, or start a new '
                'run in another work directory'
            )
        plan = record.read_plan()
        check_asked(record, plan, self.planner.path, self.save_base)
        if plan is not None:
            if not has_base:
                record = ensure_base(backbone, record)
                # What is loaded next is the checkpoint: its base need not be compared once more.
                backbone.__dict__['_cdra_ensured'] = record
            if not adapters(backbone):
                # The record's table vouches for the base.
                apply_plan(backbone, replace(plan, fingerprint=''), seed=self.seed)
            freeze_rest(backbone, plan)
            check_stays_trained(plain_model(runner), backbone)
        self.record = record
        rebuild(runner, self._configs)
        self._write_plan(runner)

    def _write_plan(self, runner: Runner) -> None:
        if self.record is not None and self.record.plan and is_main_process():
            write_text(Path(runner.work_dir) / PLAN_FILE, self.record.plan)


def _method_of(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Method:
    """The method; of the settings beside it, it gets those it has too (a budget)."""
    if isinstance(config, Mapping):  # otherwise `find_method` says what it has to be
        config = {'type': 'cdra', **config}
    known = {field.name for field in fields(CDRA)}
    own = {field.name for field in fields(find_method(config))} & known
    unused = {key: value for key, value in settings.items() if key not in own}
    if unused:
        make_method({'type': 'cdra', **unused})  # refuses what nobody has, or nobody takes
        MMLogger.get_current_instance().info(
            f'{", ".join(sorted(unused))}: settings of cdra, not used by {config["type"]}'
        )
    shared = {key: value for key, value in settings.items() if key in own}
    return make_method({**shared, **config})
