"""What a backbone takes to score, plan and train, by a model on the meta device: no memory, no GPU.

Bytes of weights, scores, adapters and optimizer are counted; those of activations are the peak of a
forward and backward that runs through shapes alone (`live_bytes`). The plan is not known before it
is made: blocks of the paper's sizes stand for it, on all matrices, of the one rank that comes
nearest to the budget. The head's activations are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cdra_mm.columns import aligned
from cdra_mm.core import Plan, adapters, apply_plan, base_state, find_targets
from cdra_mm.core.model.evaluation import evaluation_mode
from cdra_mm.core.planning.packed_plan import pack_plan
from cdra_mm.core.scoring.parameter_watch import ParameterWatch
from cdra_mm.core.scoring.score_sums import ScoreSums
from cdra_mm.core.scoring.square_sink import SquareSink
from cdra_mm.core.scoring.watched_uses import HANDLERS

from .block_sizes import KINDS, drawn_plan
from .live_bytes import FusedAttention, LiveBytes

__all__ = ['DryRun', 'Peak', 'dry_run', 'standing_plan']

Images = Callable[[int], Tensor]  # a batch of so many, on the meta device
GB = 10**9
FP32, ADAMW = 4, 8  # bytes of a number, and of AdamW's two moments of it


@dataclass(frozen=True)
class Peak:
    """Bytes of activations, a line in the batch.

    Attributes:
        fixed: What one weight takes, whatever the batch.
        image: What each image adds.
    """

    fixed: int
    image: int

    def at(self, batch: int) -> int:
        """Bytes for a batch."""
        return self.fixed + batch * self.image

    def fitting(self, room: int) -> int:
        """The largest batch that fits."""
        return max(0, (room - self.fixed) // self.image)


@dataclass(frozen=True)
class DryRun:
    """Sizes of one backbone, in bytes where nothing else is said.

    Attributes:
        parameters: Parameters of the backbone, a count.
        base: Its weights.
        entries: Competing entries, a count.
        largest: Entries of the largest competing weight.
        trained: Trainable parameters of the plan that stands for the real one, a count.
        plan: Of that plan, as it stands in a checkpoint.
        beside: Parameters beside the backbone, a count: a head.
        scoring: Activations of scoring.
        training: Activations and gradients of a training step.
        batch: Images of a step.
    """

    parameters: int
    base: int
    entries: int
    largest: int
    trained: int
    plan: int
    beside: int
    scoring: Peak
    training: Peak
    batch: int

    def scores(self, dtype: torch.dtype) -> int:
        """Scores of a type."""
        return self.entries * dtype.itemsize

    def stages(self) -> dict[str, tuple[int, Peak]]:
        """What is held in each stage, and what comes with the batch."""
        scratch = FP32 * self.largest
        own = FP32 * self.beside
        planning = self.base + self.scores(torch.float32) + self.largest
        learnt = self.trained * (FP32 + ADAMW) + self.beside * (2 * FP32 + ADAMW)
        narrow = self.scores(torch.bfloat16) + scratch
        return {
            'scoring, scores in fp32': (
                self.base + own + self.scores(torch.float32),
                self.scoring,
            ),
            'scoring, in bfloat16': (self.base + own + narrow, self.scoring),
            'scoring, on the CPU': (self.base + own + scratch, self.scoring),
            'planning': (planning, Peak(0, 0)),
            'training': (self.base + learnt, self.training),
        }

    def text(self, memory: int) -> str:
        """The sizes as a table.

        Args:
            memory: Of the GPU, bytes.
        """
        rows = []
        for stage, (held, activations) in self.stages().items():
            together = held + activations.at(self.batch)
            batch = f'{activations.fitting(memory - held):,}' if activations.image else '-'
            rows.append(
                (
                    stage,
                    _gb(held),
                    _gb(activations.at(self.batch)),
                    _gb(together),
                    'yes' if together <= memory else 'no',
                    batch if held < memory else 'none',
                )
            )
        head = ('GB', 'held', f'activations, batch {self.batch}', 'together')
        wide, narrow = self.scores(torch.float32), self.scores(torch.bfloat16)
        state = self.trained * (2 * FP32 + ADAMW)
        facts = {
            'backbone': f'{self.parameters:,} parameters, {_gb(self.base)} GB',
            'competing': f'{self.entries:,} entries; scores {_gb(wide)} GB in fp32, {_gb(narrow)} '
            'in bfloat16',
            'trained': f'{self.trained:,} parameters, if every matrix has a block of the size that '
            f'the paper reports; with gradients and AdamW {_gb(state)} GB; the plan '
            f'{self.plan / 10**6:.1f} MB',
        }
        if self.beside:
            facts['head'] = f'{self.beside:,} parameters; its activations are not counted'
        width = max(map(len, facts))
        lines = [f'{name:{width}}  {text}' for name, text in facts.items()]
        fits = (f'fits {memory / GB:g} GB', 'largest batch')
        return '\n'.join([*lines, '', aligned((*head, *fits), rows)])


def dry_run(
    backbone: nn.Module, images: Images, *, batch: int, share: float, beside: int = 0
) -> DryRun:
    """Sizes of a backbone; it is adapted afterwards.

    Args:
        backbone: On the meta device.
        images: Makes its input.
        batch: Images of a step.
        share: Trainable share of the backbone.
        beside: Parameters of what is trained besides.
    """
    targets = find_targets(backbone)
    named = dict(backbone.named_parameters())
    facts = dict(
        parameters=sum(p.numel() for p in named.values()),
        base=sum(t.numel() * t.itemsize for t in [*named.values(), *backbone.buffers()]),
        entries=sum(target.numel for target in targets.values()),
        largest=max(named[target.path].numel() for target in targets.values()),
    )
    parameters = {target.path: named[target.path] for target in targets.values()}
    sums = ScoreSums(parameters)
    scoring = _peak(lambda count: _score(backbone, images(count), parameters, sums))
    plan = standing_plan(backbone, int(share * facts['parameters']))
    apply_plan(backbone, plan, digests=dict.fromkeys(base_state(backbone), ''))
    training = _peak(lambda count: _step(backbone, images(count)))
    return DryRun(
        **facts,
        trained=sum(p.numel() for a in adapters(backbone).values() for p in a.parameters()),
        plan=pack_plan(plan).numel(),
        beside=beside,
        scoring=scoring,
        training=training,
        batch=batch,
    )


def standing_plan(backbone: nn.Module, budget: int) -> Plan:
    """Blocks of the paper's sizes on all matrices, of the rank that fits a budget, at least 1."""
    drawn = drawn_plan(backbone, KINDS['paper'])
    sides = sum(len(block.rows) + len(block.cols) for block in drawn.blocks)
    rank = max(1, budget // sides)
    blocks = tuple(
        replace(b, rank=min(rank, len(b.rows), len(b.cols)), num_sensitive=1) for b in drawn.blocks
    )
    return replace(drawn, blocks=blocks)


def _peak(run: Callable[[int], Any]) -> Peak:
    """The line through the peaks of one and of two images."""
    peaks = []
    for count in (1, 2):
        with LiveBytes() as live, FusedAttention():
            run(count)
        peaks.append(live.peak)
    each = max(1, peaks[1] - peaks[0])
    return Peak(max(0, peaks[0] - each), each)


def _score(
    backbone: nn.Module, images: Tensor, parameters: Mapping[str, nn.Parameter], sums: ScoreSums
) -> None:
    """What `estimate_scores` does with a batch."""
    sink = SquareSink('per_sample', sums)
    sink.batch_size = len(images)
    watch = ParameterWatch({id(p): name for name, p in parameters.items()}, sink, HANDLERS)
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(backbone))
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        while True:
            watch.begin()
            with watch:
                loss = _loss(backbone(images))
            if watch.complete:
                break
        stack.enter_context(sink.add(None))
        alone = [parameters[name] for name in watch.alone]
        torch.autograd.grad(loss, [watch.anchor, *alone], allow_unused=True)


def _step(backbone: nn.Module, images: Tensor) -> None:
    """Forward and backward of a training step."""
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    torch.autograd.grad(_loss(backbone(images)), trained, allow_unused=True)


def _loss(outputs: Any) -> Tensor:
    maps = outputs if isinstance(outputs, list | tuple) else [outputs]
    return torch.stack([out.sum() for out in maps if isinstance(out, Tensor)]).sum()


def _gb(count: float) -> str:
    return f'{count / GB:.2f}'
