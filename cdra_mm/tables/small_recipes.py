"""What a row of a study in memory trains: a method of the package, or a tuner of peft's."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from cdra_mm.core import Plan, apply_plan, quantize_base, save_adapter
from cdra_mm.core.planning.by_gradient import plan_by_gradient, start_of
from cdra_mm.core.planning.offers import GradientRules
from cdra_mm.data.optional import optional_module
from cdra_mm.errors import ConfigError
from cdra_mm.methods import CDRA, make_method
from cdra_mm.methods.base import Request, Trials
from cdra_mm.spelling import unknown

__all__ = ['Attached', 'Recipe', 'Scores']

Scores = Callable[[str], Mapping[str, Tensor]]  # by `Method.statistic`, or one of GRADIENTS
GRADIENTS = ('mean_gradient', 'signal', 'momentum')
AfterStep = Callable[[int], None]


@dataclass(frozen=True)
class Attached:
    """What a recipe came to on a backbone.

    Attributes:
        put: Puts it on a backbone, in place, freezes the rest, and gives what is called for it.
        save: Writes what was trained, and nothing else, into an empty folder.
        params: Trained parameters.
        schedule: For tuners that change while they are trained: called after each step with the
            tuner and the step, from 0; None for the others.
        blocks: Number of low-rank blocks, and of vectors, of a plan.
        vectors: The same.
    """

    put: Callable[[nn.Module], nn.Module]
    save: Callable[[nn.Module, Path], None]
    params: int
    schedule: Callable[[nn.Module, int], None] | None = None
    blocks: int = 0
    vectors: int = 0

    def after_step(self, put: nn.Module) -> AfterStep | None:
        """`schedule` of what was put on."""
        return None if self.schedule is None else partial(self.schedule, put)

    def file_bytes(self, put: nn.Module) -> int:
        """Bytes of the files that it saves."""
        with tempfile.TemporaryDirectory() as folder:
            self.save(put, Path(folder))
            files = [path for path in Path(folder).rglob('*') if path.is_file()]
            return sum(path.stat().st_size for path in files if path.suffix != '.md')


@dataclass(frozen=True)
class Recipe:
    """What is trained, and from where.

    Attributes:
        method: A method of the package with its settings; empty beside `peft`.
        peft: A tuner of peft's: ``peft_type`` and the settings of its config; None for `method`.
        rules: Of a plan by the mean gradient in place of the method's, which say less; None for
            the method's. The currency is that of the method's allocation, if it is one of these.
        start: Whether the factors begin along the mean gradient of their blocks, whatever the
            method.
        head_iterations: Steps that fit the head alone before scores and training; 0 leaves it as
            it was drawn.
        base_dtype: ``'int8'`` keeps the frozen matrices in int8 while it trains and is validated.
        rate_factors: Factors on the backbone's learning rate by a parameter's own name, such as
            ``{'down': 0.1}``.
        gradient: What `rules` and `start` take for the gradient: ``'mean_gradient'``, ``'signal'``
            or ``'momentum'``, see `Setting.scores`.
        again: Step at which what was learnt is merged, and decided anew what is trained; 0: never.
    """

    method: Mapping[str, Any] = field(default_factory=dict)
    peft: Mapping[str, Any] | None = None
    rules: GradientRules | None = None
    start: bool = False
    head_iterations: int = 0
    base_dtype: str | None = None
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    gradient: str = 'mean_gradient'
    again: int = 0

    def __post_init__(self) -> None:
        if self.base_dtype not in (None, 'int8'):
            raise ConfigError(f"base_dtype={self.base_dtype!r}: expected 'int8' or None")
        if self.gradient not in GRADIENTS:
            raise ConfigError(unknown('gradient', self.gradient, GRADIENTS, ''))
        if self.again and self.gradient == 'momentum':
            raise ConfigError(
                f"again={self.again}: not with gradient='momentum', which is of heads on the "
                'pretrained backbone'
            )
        for name, factor in self.rate_factors.items():
            if not isinstance(factor, int | float) or not 0 < factor < float('inf'):
                raise ConfigError(f'rate_factors: {name}={factor!r}: expected a number above 0')

    def attach(
        self, backbone: nn.Module, scores: Scores, seed: int, trials: Trials | None = None
    ) -> Attached:
        """Decides what is trained of a backbone, which stays as it is.

        Args:
            backbone: The backbone.
            scores: Gives a statistic of its gradients.
            seed: Of factors that are drawn.
            trials: Where methods that search can try out plans.

        Raises:
            ConfigError: If the method, the tuner or a setting is unknown.
        """
        if self.peft is not None:
            return _attach_peft(self.peft, backbone, seed)
        plan, start = self.plan(backbone, scores, trials)
        if plan is None:
            return Attached(_whole, _save_whole, sum(p.numel() for p in backbone.parameters()))
        return Attached(
            partial(_apply, plan, seed, start, self.base_dtype),
            lambda put, folder: save_adapter(put, folder / 'adapter.safetensors'),
            plan.num_trainable,
            blocks=len(plan.blocks),
            vectors=len(plan.vectors),
        )

    def groups(self, put: nn.Module, rate: float) -> list[tuple[list[nn.Parameter], float]]:
        """What was put on, trained parameters together by their learning rate."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in put.named_parameters():
            if parameter.requires_grad:
                factor = self.rate_factors.get(name.rpartition('.')[2], 1.0)
                groups.setdefault(factor * rate, []).append(parameter)
        return [(parameters, rate) for rate, parameters in groups.items()]

    def plan(
        self, backbone: nn.Module, scores: Scores, trials: Trials | None = None
    ) -> tuple[Plan | None, Mapping[str, Tensor]]:
        """The plan of a method, None where all is trained, and where its factors begin."""
        method = make_method(self.method)
        plan: Plan | None
        if self.rules is not None:
            budget = sum(p.numel() for p in backbone.parameters()) // 200
            rules = self.rules
            if isinstance(method, CDRA) and method.by_gradient:
                rules = replace(rules, currency=str(method.allocation))
            plan = plan_by_gradient(scores(self.gradient), budget, rules)
        else:
            found = scores(method.statistic) if method.needs_scores else {}
            plan = method.plan(Request(backbone, scores=found, trials=trials))
        if plan is None:
            return None, {}
        if self.start:
            return plan, start_of(plan, scores(self.gradient))
        if not method.needs_start:
            return plan, {}
        return plan, method.first_factors(plan, scores('mean_gradient'))


def _apply(
    plan: Plan,
    seed: int,
    start: Mapping[str, Tensor],
    base_dtype: str | None,
    backbone: nn.Module,
) -> nn.Module:
    apply_plan(backbone, plan, seed=seed, start=start)
    if base_dtype is not None:
        quantize_base(backbone)
    return backbone


def _whole(backbone: nn.Module) -> nn.Module:
    return backbone.requires_grad_(True)


def _save_whole(backbone: nn.Module, folder: Path) -> None:
    state = {name: value.contiguous() for name, value in backbone.state_dict().items()}
    save_file(state, folder / 'backbone.safetensors')


def _attach_peft(settings: Mapping[str, Any], backbone: nn.Module, seed: int) -> Attached:
    peft: Any = optional_module('peft', 'peft')
    known = {kind.value: kind for kind in peft.PEFT_TYPE_TO_CONFIG_MAPPING}
    given = dict(settings)
    name = given.pop('peft_type', '')
    if name not in known:
        raise ConfigError(unknown('peft_type', name, known, ''))
    make = peft.PEFT_TYPE_TO_CONFIG_MAPPING[known[name]]
    try:
        make(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f'peft {name}: {error}') from None

    def put(module: nn.Module) -> nn.Module:
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return cast(nn.Module, peft.get_peft_model(module, make(**given)))

    def save(module: nn.Module, folder: Path) -> None:
        cast(Any, module).save_pretrained(str(folder))

    shown = put(copy.deepcopy(backbone))
    params = sum(p.numel() for p in shown.parameters() if p.requires_grad)
    changes = hasattr(cast(Any, shown).base_model, 'update_and_allocate')
    return Attached(put, save, params, _allocate if changes else None)


def _allocate(tuner: nn.Module, step: int) -> None:
    """AdaLoRA's own schedule of ranks; it reads the gradients of the step."""
    cast(Any, tuner).base_model.update_and_allocate(step)
