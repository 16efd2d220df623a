"""`CDRAHook`: when what happens in a run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from cdra_mm.core.adapters.copied_weights import check_product
from cdra_mm.errors import CheckpointError, ConfigError
from cdra_mm.methods import Full, check_types
from cdra_mm.storage import write_text

from .adaptation import Adaptation
from .backbone import PREFIX, attach_loader, find_backbone, wrap_config
from .checkpoints.base_source import named_bases
from .checkpoints.checked import check_fields
from .checkpoints.checked_optimizer import check_optimizer
from .checkpoints.midway import MIDWAY_KEY, restore_midway
from .checkpoints.own_files import claim_own_files
from .checkpoints.plain_state import check_can_be_saved, same_meaning
from .checkpoints.record import Record, read_record, record_of
from .checkpoints.resuming import check_parts, check_weights, choose_checkpoint
from .checkpoints.saving import save_safely
from .checkpoints.slim_hook import SlimCheckpointHook
from .compiled_backbone import (
    check_compile,
    compile_backbone,
    help_config_compile,
    leave_uncompiled,
    refuse_two,
)
from .data_check.watch import watch
from .divergence import DivergenceHook, check_finite
from .guards import set_guards
from .hook_settings import check_base_setting, method_of
from .host.runner_parts import is_resumed, trains
from .parallel.distributed_strategies import refuse_sharding
from .parameter_groups import join_groups
from .planning.run_plan import DEFAULT_TRAINED, RunPlanner
from .rate_watch import RateWatch
from .rebuild import plain_model, rebuild, remember_configs
from .recompute import keep_gradients
from .run_results import write_results
from .summary import update_summary
from .training_watch import TrainingWatch
from .visual_hook import VisualHook
from .work_lock import WorkLock, hold_work_dir

__all__ = ['CDRAHook']

PLAN_FILE = 'cdra_plan.json'


@HOOKS.register_module()
class CDRAHook(Hook):
    """Fine-tunes the backbone of any OpenMMLab model with CDRA, CDRA-SPT or a peer.

    Before training it scores the backbone on the run's own training data, plans,
    puts the adapters in, freezes the rest and has the optimizer built again.
    Checkpoints hold what is trained and name the frozen base.

    The defaults are those of the method on DINOv2 and ViT: ``dict(type='cdra_mm.CDRAHook')`` is
    enough. Settings of ``cdra`` (``gamma`` to ``quadrant`` below) may stand here for short, or in
    `method`; other methods take those that they have too, and have their own in `cdra_mm.methods`.

    Args:
        method: dict, default ``dict(type='cdra')``: ``dict(type=name, **settings)``, what decides
            which weights are trained (names in docs/methods.md).
        num_samples: int, default 400: training samples to score, drawn without repetition; SPT's
            figure. A smaller training set is used whole.
        batch_size: int, default that of the training loader: samples a batch while scoring. The
            scores of ``'per_sample'`` do not depend on it, memory and time do.
        statistic: ``'per_sample'`` (Eq. 3: the mean over samples of the squared gradient) or
            ``'per_batch'`` (squares of the gradients of batch means: SPT's released code) or
            ``'summed'`` (the magnitude of their mean over the batches: GPS's) or
            ``'mean_gradient'``, signed, which ``allocation='descent'`` and ``'energy'`` take.
            Default: the method's own. One of the first three asks for ``allocation='scores'``.
        exclude: str or list, default none: what does not compete in a method that scores: roles
            (``'norm'``), and names of parameters or modules of the backbone
            (``'layers.0.attn.proj.weight'``, ``'layers.11'``).
        also_train: str or list, default ``('cls_token',)`` (SPT's): names of backbone parameters
            that are trained whole without competing, of any kind and place: a class token, a patch
            embedding that the base file does not bring. One that a backbone lacks is an error,
            except in the default.
        also_train_in_budget: bool, default True: whether they count against ``budget_params`` and
            ``budget_percent``.
        seed: int, default 0: seed of the samples drawn, their augmentations and the factors.
        plan: path, default None: a ``cdra_plan.json`` to apply instead of scoring; its factors
            begin at random unless ``start='gradient'`` is given, which scores its blocks.
        save_base: bool, default False: store the frozen base weights in every checkpoint. Without
            it checkpoints name where they came from, and are a few MB.
        keep_scores: False (default), ``'masks'`` or ``'all'``: what of the scores goes into
            ``cdra_scores.safetensors`` in the work directory, for pictures (see `kept_scores`).
        score_dtype: ``'float32'`` (default) or ``'bfloat16'``: what the scores are kept in, 4 or 2
            bytes a competing entry; bfloat16 tells scores apart that differ by a percent.
        score_device: None (default, where the backbone is) or ``'cpu'``: where they are kept. Both
            are for backbones of billions of parameters (docs/large_backbones.md).
        visualize: bool, default True: show the plan and how the adapters grow through the run's
            visualizer (see `visual_hook`).
        product: ``'auto'`` (default), ``'copied'``, ``'kept'`` or ``'factored'``: how adapted
            products are computed. Copied, the default on a GPU, is the fastest there: the update
            is rounded with its weight to the type that is computed in, as in mixed-precision
            fine-tuning. Kept, the default on a CPU for small models in full precision, is the
            fastest there and holds their adapted weights twice. Factored, the default on a CPU
            otherwise, never rounds an update.
        compile: bool or dict, default False: whether `torch.compile` makes one graph of the
            backbone in training, and its options (``dict(mode='reduce-overhead')`` for CUDA
            graphs). Where it cannot, the run goes on without and says why.
        head_iters: int: iterations that fit the head on the frozen backbone's features before
            anything is scored and trained, of any method (docs/methods.md). The features of at most
            `num_samples` images are computed once. Default: where the mean gradient decides, as
            many as move a weight of the head by about 0.05 (5 at a rate of 1e-2, 50 at 1e-3, at
            most 100 steps), and 0 where that fails; 0 for the other methods.
        base_dtype: None (default, as it is loaded) or ``'int8'``: what the frozen matrices are kept
            in while training, a quarter of their memory; adapters, scores and a merge are in full
            precision (docs/small_precision.md).
        **settings: Of ``cdra``; at most one of the four budgets:

            gamma: float in (0, 1]: fraction of the competing entries to select.
            num_sensitive: int: number of entries to select.
            budget_params: int: trainable backbone parameters; the largest plan within it.
            budget_percent: float, default 0.5 where no budget is given: the same in percent of
            the backbone's parameters.
            allocation: ``'descent'`` (default): blocks, ranks and vectors by how much a first
            step of Adam would lower the loss per parameter; ``'energy'``: by the squared length
            of the mean gradient; or ``'scores'``, the paper's CDRA-SPT, which is also the default
            where gamma, num_sensitive or a setting of the paper's below is given.
            max_rank: int, default 8: largest rank of a block by the first two.
            start: ``'gradient'`` (default with the first two) or ``'random'`` (LoRA's): where
            ``down`` begins.
            compete: ``'all'`` (default), ``'matrices'``, ``'vectors'`` or a list of roles.

            Of the paper's alone, with its defaults:

            rank_rule: ``'eq7'`` (default, Eq. 7), ``'count'`` (without its area factor) or a
            fixed rank such as 8, 16 or 32 (Table 4).
            rank_alpha: float, default 1 (Eq. 7 as printed): factor on the number of selected
            entries in these two rules; see docs/table4.md.
            min_rank: int, default 0: rank of a matrix whose rule gives less; 0 freezes it.
            beta: float, default 5 (SPT's): a vector of L entries is trained whole from ``L / beta``
            selected ones on, otherwise those alone.
            case1, case2: bool, default True: whether CDRA takes matrices with few and with many
            selected entries (Eq. 1, Table 5); otherwise SPT's own treatment.
            alpha: float, default 10 (SPT's code; its text says 1): how many are many.
            lora_rank: int, default 8: rank of SPT's LoRA in the place of case 2.
            size_ratio: float, default 1: sides of the adapted over those of the compact block
            (Table 6).
            quadrant: ``'10'`` (default), ``'00'``, ``'11'`` or ``'01'``: the part of a matrix that
            is adapted (Table 7).

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
        score_dtype: str = 'float32',
        score_device: str | None = None,
        visualize: bool = True,
        product: str = 'auto',
        compile: bool | Mapping[str, Any] = False,
        head_iters: int | None = None,
        base_dtype: str | None = None,
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
            'score_dtype': score_dtype,
            'score_device': score_device,
            'visualize': visualize,
            'product': product,
            'compile': compile,
            'head_iters': head_iters,
            'base_dtype': base_dtype,
        }
        set_guards()
        check_types(given, get_type_hints(CDRAHook.__init__))
        self.method = method_of(
            {} if method is None else method, settings, statistic, planned=plan is not None
        )
        self.planner = RunPlanner(
            self.method, num_samples, batch_size, statistic, also_train, seed, plan, keep_scores,
            exclude, also_train_in_budget, score_dtype, score_device,
        )  # fmt: skip
        check_product(product)
        check_compile(compile)
        if head_iters is not None and head_iters < 0:
            raise ConfigError(f'head_iters={head_iters}: expected a count of at least 0')
        check_base_setting(base_dtype, self.method, save_base)
        self.adaptation = Adaptation(self.planner, seed, save_base, product, head_iters, base_dtype)
        self.visualize = visualize
        self.compile = compile
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
        return self.adaptation.settings

    # Stages, in the order in which a run meets them.

    def before_run(self, runner: Runner) -> None:
        """Teaches the backbone to load adapted checkpoints, before anything is loaded."""
        refuse_sharding(runner)
        watch(runner)
        model = plain_model(runner)
        attach_loader(find_backbone(model), named_bases(runner.cfg, model))
        if trains(runner):
            refuse_two(runner, self.compile)
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
        if not is_resumed(runner) or not self._configs:
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
            self._use_record(runner, self.adaptation.adopt(runner, backbone, record))
        check_weights(checkpoint, runner, record)
        check_optimizer(checkpoint, runner.optim_wrapper)
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
            record = self.adaptation.adopt(runner, backbone, loaded, has_base=True)
            self._use_record(runner, record)
        if self.record is None:
            self._use_record(runner, self.adaptation.begin(runner, backbone))
        if self._midway is not None:
            restore_midway(runner, self._midway)
        join_groups(runner)
        keep_gradients(plain_model(runner))
        help_config_compile(runner)
        compile_backbone(backbone, self.compile)
        wrap_config(runner, self.record.base if self.record else None)
        check_can_be_saved(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Notes the metrics for the summary."""
        self._metrics = dict(metrics or {})

    def after_train(self, runner: Runner) -> None:
        """Writes the adapter file and the summary."""
        leave_uncompiled(find_backbone(plain_model(runner)))
        check_finite(runner)
        if not is_main_process() or self.record is None:
            return
        seconds = time.time() - self._started
        results = write_results(runner, self.record, self._watch.trained(runner), self._metrics)
        update_summary(
            runner.work_dir,
            {
                'method': self.method.name,
                **results,
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

    def _use_record(self, runner: Runner, record: Record) -> None:
        """What the run trains is settled: its optimizer is built for it, and its plan written."""
        self.record = record
        rebuild(runner, self._configs)
        if record.plan is not None and is_main_process():
            write_text(Path(runner.work_dir) / PLAN_FILE, record.plan.to_json())
