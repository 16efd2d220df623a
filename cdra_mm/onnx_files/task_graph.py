"""One ONNX file of a base for many tasks: what a task changes are inputs of the graph.

    y = x W^T + b + (x down^T) up^T        down [r, I], up [O, r]

Of every weight that a task of the model adapts, ``<name>.down`` and ``<name>.up`` are inputs, at
full width and of the largest rank among the tasks (a smaller one is padded with zeros): so the
tasks need not have the same plan, and a task that comes later fits where it adapts no other weight
and has no larger rank. Any other tensor that a task changes (bias, norm, token) is an input of its
own name. Each input has a value in the file, zero or the base's: what is not given is the base's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdra_mm.core import MultiTask
from cdra_mm.core.adapters.compact_linear import wide_factors
from cdra_mm.core.adapters.fitting import places_of
from cdra_mm.core.adapters.mixed_weights import Group, refuse_calls
from cdra_mm.core.adapters.stand_in import StandIn, standing_in
from cdra_mm.core.artifacts.mixed_batch import changes_of
from cdra_mm.core.model.own_state import tensors_in
from cdra_mm.errors import CheckpointError, ConfigError, PlanError
from cdra_mm.storage.writing import write_atomically

from .writing import first_line, onnx_message, refuse_large, runtime

__all__ = ['TaskGraph', 'export_base']

IMAGES, FEATURES = 'images', 'features'
# The two libraries add up in different orders: this share of the largest output.
TOLERANCE = 1e-4
BATCHES = (2, 1, 3)  # exported with the first; the others prove that the size is free


@dataclass(frozen=True)
class TaskGraph:
    """An ONNX file of a base.

    Attributes:
        path: The file.
        ranks: Rank of the factors that it takes for each adapted weight, by name.
        values: Names of the other tensors that it takes.
        outputs: Names of its outputs: what the base gives, in turn.
        difference: Largest difference of an output of onnxruntime over all tasks, as a share of
            the largest output.
    """

    path: str
    ranks: Mapping[str, int]
    values: tuple[str, ...]
    outputs: tuple[str, ...]
    difference: float = 0.0

    def inputs_of(self, model: MultiTask, name: str) -> dict[str, Any]:
        """What a task gives to the graph beside the images, numpy arrays by name.

        Args:
            model: The model that has the task, on the same base.
            name: The task.

        Raises:
            PlanError: If it changes what the graph has no input for.
        """
        factors, values = _changes(model, name)
        for key in [*factors, *values]:
            if key not in (self.ranks if key in factors else self.values):
                raise PlanError(
                    f'{name!r} changes {key}, for which {self.path} has no input: export the base '
                    'anew with this task'
                )
        found: dict[str, Tensor] = dict(values)
        for key, (down, up) in factors.items():
            rank = self.ranks[key]
            if len(down) > rank:
                raise PlanError(
                    f'{name!r} adapts {key} by the rank {len(down)}, and {self.path} has room for '
                    f'{rank}: export the base anew with this task'
                )
            found |= {
                f'{key}.down': nn.functional.pad(down, (0, 0, 0, rank - len(down))),
                f'{key}.up': nn.functional.pad(up, (0, rank - len(down))),
            }
        return {key: value.detach().cpu().numpy() for key, value in found.items()}


class _FactoredWeight(StandIn):
    """A weight and a low-rank update at full width."""

    def __init__(self, name: str, base: Tensor, down: Tensor, up: Tensor) -> None:
        super().__init__(name, base)
        self.down, self.up = down, up

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        hidden = nn.functional.linear(x, self.down)
        return nn.functional.linear(x, self.base, bias) + nn.functional.linear(hidden, self.up)

    def whole(self) -> Tensor:
        return self.base + self.up @ self.down


class _Base(nn.Module):
    """The base with what a task changes as arguments."""

    def __init__(self, model: MultiTask, graph: TaskGraph, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)
        self.backbone, self._run = model.backbone, model.features
        self.ranks, self.values = graph.ranks, graph.values

    def forward(self, images: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        places, given = places_of(self.backbone), dict(zip(self.names, inputs, strict=True))
        put: dict[str, Any] = {name: given[name] for name in self.values}
        for name in self.ranks:
            held, key = places[name]
            put[name] = _FactoredWeight(name, held[key], given[f'{name}.down'], given[f'{name}.up'])
        with standing_in(self.backbone, places, put):
            return tuple(tensors_in(self._run(images)))


@torch.no_grad()
def export_base(model: MultiTask, path: str | Path, shape: tuple[int, int, int]) -> TaskGraph:
    """Writes the base of a model as an ONNX file that takes the model's tasks as inputs.

    The inputs are ``images [B, C, H, W]`` and what a task changes (`TaskGraph.inputs_of`), the
    outputs what the base gives. B is free, H and W are not. The heads are not in it. Before it is
    written every task, and the base alone, has been run by onnxruntime.

    Args:
        model: The model, in evaluation mode; its tasks say which inputs there are.
        path: The file.
        shape: Channels, H and W, pixels.

    Raises:
        ConfigError: If the packages of the extra ``export`` are missing, the model or the shape is
            none, or torch cannot trace the base.
        PlanError: If a task changes a weight otherwise than by low rank, or what a module computes.
        CheckpointError: If the file cannot be written, or gives other outputs.
    """
    onnxruntime = runtime()
    _check_given(model, shape)
    refuse_large(model.backbone)
    if model.training or model.backbone.training:
        raise ConfigError('the model is in training mode: call eval() before it is exported')
    ranks: dict[str, int] = {}
    values: dict[str, None] = {}
    for name in model.names:
        factors, own = _changes(model, name)
        for key, (down, _) in factors.items():
            ranks[key] = max(ranks.get(key, 0), len(down))
        values |= dict.fromkeys(own)
    graph = TaskGraph(str(path), ranks, tuple(values), ())
    before = model.current
    model.use(None)
    try:
        state = model.backbone.state_dict()
        # Copies: the task that is in use again below puts its own values there.
        plain = {name: state[name].clone() for name in values}
        for name, rank in ranks.items():
            high, wide = state[name].shape
            plain[f'{name}.down'] = state[name].new_zeros(rank, wide)
            plain[f'{name}.up'] = state[name].new_zeros(high, rank)
        images = torch.randn(BATCHES[0], *shape, generator=torch.Generator().manual_seed(0))
        try:
            outputs = _outputs_of(model, images)
        except Exception as error:  # any backbone may be handed in
            raise ConfigError(
                f'{type(model.backbone).__name__} cannot be called on {shape[0]} x {shape[1]} x '
                f'{shape[2]} images ({first_line(error)}): name another shape'
            ) from None
        dynamic = ({0: torch.export.Dim('batch', min=1)}, [None] * len(plain))
        proto = onnx_message(
            _Base(model, graph, [*plain]).eval(),
            (images, list(plain.values())),
            [IMAGES, *plain],
            outputs,
            dynamic,
            what=type(model.backbone).__name__,
            hint='merge the tasks and export each by itself',
        )
    finally:
        model.use(before)
    _give_defaults(proto, plain)
    content = proto.SerializeToString()
    graph = replace(graph, outputs=tuple(outputs))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # that defaults can be replaced is meant, not to be warned of
    session = onnxruntime.InferenceSession(content, options, providers=['CPUExecutionProvider'])
    difference = max(
        _difference(session, model, graph, name, shape) for name in (None, *model.names)
    )
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f'onnxruntime gives other outputs than the model (a share of {difference:.3g} of the '
            'largest): nothing was written; please report this with the model'
        )
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(content))
    return replace(graph, difference=difference)


def _check_given(model: MultiTask, shape: tuple[int, int, int]) -> None:
    """Refuses what cannot be exported, before any of the work is done."""
    if not isinstance(model, MultiTask):
        raise ConfigError(
            f'the model is a {type(model).__name__}: expected a cdra_mm.core.MultiTask around it'
        )
    sizes = tuple(shape) if isinstance(shape, list | tuple) else ()
    if len(sizes) != 3 or not all(type(size) is int and size > 0 for size in sizes):
        raise ConfigError(f'shape={shape!r}: expected channels, height and width, three counts')
    others = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if others:
        raise ConfigError(
            f'the model is in {str(others.pop()).removeprefix("torch.")}: an ONNX file is written '
            'of fp32, call float() first'
        )


def _changes(
    model: MultiTask, name: str
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Factors of a task's weights at full width, and the values of all else, by name.

    Raises:
        PlanError: If it changes a weight otherwise than by low rank, or what a module computes.
    """
    before = model.current
    model.use(None)
    try:
        task = model.task(name)
        refuse_calls(name, task.adapters)
        products, values = changes_of(
            model.backbone, places_of(model.backbone), [(Group(0, 1), task)]
        )
        factors = {}
        for key, updates in products.items():
            ((_, update),) = updates.by_group
            if update.rest is not None:
                raise PlanError(
                    f'{name!r} changes {key} otherwise than by low rank: there is no input for it; '
                    'merge the task and export it by itself'
                )
            like = model.backbone.state_dict()[key]
            factors[key] = wide_factors(like, update.blocks, update.factors)
        return factors, {key: value for key, (value,) in values.items()}
    finally:
        model.use(before)


def _outputs_of(model: MultiTask, images: Tensor) -> list[str]:
    """Names of what the base gives, in turn."""
    count = len(list(tensors_in(model.features(images))))
    return [FEATURES, *(f'{FEATURES}_{i}' for i in range(1, count))]


def _give_defaults(proto: Any, values: Mapping[str, Tensor]) -> None:
    """Gives inputs of the graph a value for where they are not given."""
    from onnx import numpy_helper

    for name, value in values.items():
        proto.graph.initializer.append(numpy_helper.from_array(value.cpu().numpy(), name))


def _difference(
    session: Any, model: MultiTask, graph: TaskGraph, name: str | None, shape: tuple[int, int, int]
) -> float:
    """Of a task, or of the base alone."""
    given = {} if name is None else graph.inputs_of(model, name)
    before = model.current
    model.use(name)
    worst = 0.0
    try:
        for count in BATCHES:
            generator = torch.Generator().manual_seed(count)
            images = torch.randn(count, *shape, generator=generator)
            found = session.run(list(graph.outputs), {IMAGES: images.numpy(), **given})
            for one, other in zip(tensors_in(model.features(images)), found, strict=True):
                scale = float(one.abs().max()) or 1.0
                distance = float((one - torch.from_numpy(other)).abs().max()) / scale
                worst = max(worst, distance)
    finally:
        model.use(before)
    return worst
