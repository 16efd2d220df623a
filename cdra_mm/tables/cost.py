"""Table 8: what each method costs in time and memory, measured by the benchmark's own code.

The paper's columns: latency and memory of inference, and memory of fine-tuning, per method. Here
the model is a timm ViT with random weights and a linear classifier, so no data is needed;
sensitivity is scored on one random batch, which decides where adapters sit but hardly what they
cost. Of a method that searches, the largest plan that it meets is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cdra_mm.benchmark.arguments import DEFAULTS, MODELS, nearest
from cdra_mm.benchmark.case import TIMM_NAMES, Batch, Case, check_vit
from cdra_mm.benchmark.inference import forward_of
from cdra_mm.benchmark.memory import in_child, peak_above_rest
from cdra_mm.benchmark.step import Step
from cdra_mm.benchmark.timing import is_out_of_memory, measure
from cdra_mm.core import Plan, apply_plan, estimate_scores, merge_adapters
from cdra_mm.errors import CDRAError, ConfigError
from cdra_mm.methods import Request, make_method
from cdra_mm.spelling import unknown
from cdra_mm.storage import write_text

from .grid import Row, pick
from .grid_file import read_rows
from .table import Cell, Column, Table
from .text_formats import FORMATS, SUFFIXES

__all__ = ['Cost', 'main', 'measure_costs']

GIB = 2**30
NUM_CLASSES = 10


@dataclass(frozen=True)
class Cost:
    """What a method costs.

    Attributes:
        seconds: Of a forward without gradients, per image, merged where the method merges.
        inference_bytes: Of that forward at its peak, weights included; None where unknown.
        training_bytes: Of a training step at its peak, weights and AdamW's state included.
        merged: Whether inference is that of the base model's own layers.
    """

    seconds: float
    inference_bytes: int | None
    training_bytes: int | None
    merged: bool


class Classifier(nn.Module):
    """A backbone and a linear head; the methods see the backbone alone."""

    def __init__(self, backbone: nn.Module, width: int) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(width, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, ``[B, NUM_CLASSES]``."""
        return self.head(self.backbone(images))


class LargestWins:
    """Trials without data, for methods that search: what they cost at most within their limit."""

    seed = 0

    def train(self, *_: Any, **__: Any) -> None:
        """Trains nothing; see `cdra_mm.methods.Trials`."""

    def fitness(self, plan: Plan) -> float:
        """The number of trained parameters."""
        return float(plan.num_trainable)


def build_classifier(name: str, image_size: int) -> nn.Module:
    """A timm ViT of patch 16 under a linear head, all weights random."""
    check_vit(image_size)
    import timm

    backbone: Any = timm.create_model(TIMM_NAMES[name], img_size=image_size, num_classes=0)
    return Classifier(backbone, backbone.num_features)


def adapt(case: Case, row: Row) -> nn.Module:
    """A model as the method trains it."""
    method = make_method(row.method)
    model = case.make_model()
    assert isinstance(model, Classifier)
    scores: dict[str, Tensor] = {}
    if method.needs_scores:

        def losses(backbone: nn.Module, batch: Batch) -> Tensor:
            images, labels = batch
            logits = model.head(backbone(images))
            return F.cross_entropy(logits, labels, reduction='none')

        scores = estimate_scores(model.backbone, [case.make_batch(NUM_CLASSES)], losses)
    plan = method.plan(Request(model.backbone, scores, trials=LargestWins()))
    model.requires_grad_(True)
    if plan is not None:
        apply_plan(model.backbone, plan, seed=case.seed)
    return model


def measure_costs(
    case: Case, rows: Sequence[Row], *, tell: Callable[[str], Any] = print
) -> dict[str, Cost]:
    """Costs by name of the row; a method that cannot be measured is told and left out.

    Args:
        case: The setting.
        rows: The methods.
        tell: Takes a line for each method that is left out.
    """
    runs: dict[str, Callable[[], Any]] = {}
    merged: dict[str, bool] = {}
    memory: dict[str, Any] = {}
    batch = case.make_batch(NUM_CLASSES)
    for row in rows:
        try:
            # On a CPU only a fresh process tells what a run needs; a GPU's allocator always does.
            call = in_child if case.device == 'cpu' else _call
            memory[row.name] = call(_peaks, case, row)
            model, merged[row.name] = _for_inference(adapt(case, row))
            runs[row.name] = forward_of(case, model, batch)
        except (CDRAError, RuntimeError, MemoryError) as error:
            if not isinstance(error, CDRAError) and not is_out_of_memory(error):
                raise
            tell(f'left out: {row.name}: {error}')
    measured = measure(
        runs, device=case.device, repeats=case.repeats, warmup=case.warmup, seed=case.seed
    )
    for name, reason in measured.failed.items():
        tell(f'left out: {name}: {reason}')
    return {
        name: Cost(median(seconds) / case.batch, memory[name][0], memory[name][1], merged[name])
        for name, seconds in measured.seconds.items()
        if name not in measured.failed
    }


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _for_inference(model: nn.Module) -> tuple[nn.Module, bool]:
    """The model merged, or as it is where its method does not merge."""
    assert isinstance(model, Classifier)
    try:
        merge_adapters(model.backbone)
    except CDRAError:
        return model.eval(), False
    return model.eval(), True


def _peaks(case: Case, row: Row) -> tuple[int | None, int | None]:
    """Bytes at the peak of a forward, and of a training step."""
    batch = case.make_batch(NUM_CLASSES)
    model, _ = _for_inference(adapt(case, row))
    above = peak_above_rest(forward_of(case, model, batch), case.device)
    inference = None if above is None else above + _bytes(model)
    del model
    step = Step(case, adapt(case, row), batch)
    above = peak_above_rest(step, case.device)
    if above is None:
        return inference, None
    state = [v for s in step.optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    return inference, above + _bytes(step.model) + sum(t.nbytes for t in state)


def _bytes(model: nn.Module) -> int:
    return sum(t.nbytes for tensors in (model.parameters(), model.buffers()) for t in tensors)


def cost_table(case: Case, rows: Sequence[Row], costs: dict[str, Cost]) -> Table:
    """The table of costs, in the order and families of the rows."""
    families: dict[str, list[tuple[str, tuple[Cell, ...]]]] = {}
    for row in rows:
        cost = costs.get(row.name)
        figures: list[float | None] = [None] * 3
        if cost is not None:
            sizes = (cost.inference_bytes, cost.training_bytes)
            figures = [1000 * cost.seconds, *(None if s is None else s / GIB for s in sizes)]
        cells = tuple(Cell(() if figure is None else (figure,)) for figure in figures)
        mark = '' if cost is None or cost.merged else ' *'
        families.setdefault(row.family, []).append((row.title + mark, cells))
    return Table(
        title=f'Cost of methods: {case}',
        columns=(
            Column('ms per image', 'Inference', share=True),
            Column('memory, GiB', 'Inference', share=True),
            Column('memory, GiB', 'Fine-tuning', share=True),
        ),
        families=tuple((name, tuple(entries)) for name, entries in families.items()),
        notes=(
            f'Median of {case.repeats} rounds. Memory at the peak, with weights, gradients and '
            "AdamW's state. *: does not merge; inference goes through its own modules.",
        ),
    )


def main(arguments: argparse.Namespace, tools: Path) -> None:
    """Measures and prints the table of costs.

    Args:
        arguments: What `arguments.parser` read.
        tools: The rows are those of ``../configs/_base_/tables/methods.py``.

    Raises:
        ConfigError: If an option is wrong; nothing has run then.
    """
    rows = read_rows(tools.parent / 'configs/_base_/tables/methods.py')
    rows = pick('method', rows, arguments.methods)
    for row in rows:
        make_method(row.method)
    device = 'cuda' if torch.cuda.is_available() and arguments.devices != ['cpu'] else 'cpu'
    defaults = DEFAULTS[device]
    name = nearest(arguments.model or defaults['model'], MODELS)
    if name is None:
        raise ConfigError(unknown('model', arguments.model, MODELS))
    batch = defaults['batch'][0] if arguments.batch is None else arguments.batch
    if batch < 1:
        raise ConfigError(f'--batch {batch}: expected at least 1')
    settings = {key: defaults[key] for key in ('dtype', 'repeats', 'warmup', 'threads')}
    case = replace(Case(**settings, build=build_classifier), model=name, batch=batch, device=device)
    table = cost_table(case, rows, measure_costs(case, rows))
    if arguments.out:
        for form, write in FORMATS.items():
            write_text(Path(arguments.out) / f'cost.{SUFFIXES[form]}', write(table))
    print(FORMATS[arguments.format](table), end='')
