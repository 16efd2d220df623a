"""A training step with adapters, beside the frozen base, LoRA and full fine-tuning."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from cdra_mm.sizing.block_sizes import label, make_block_plan

from . import compared_models as models
from .candidates import Candidates
from .case import Batch, Case
from .compared_models import FULL, LORA, REFERENCE, Builder
from .memory import allocated, kept_bytes, peaks_since, saved_bytes
from .peers import quiet

__all__ = ['STEP_PEERS', 'Step', 'compare_steps', 'step_builders']

STEP_PEERS = ('peft', 'mmpretrain')


class Step:
    """Forward, backward and AdamW over what a model trains.

    Args:
        case: The setting.
        model: The model.
        batch: Its images and labels.
        fused: Whether AdamW is torch's fused one; that of a GPU always is.
    """

    def __init__(self, case: Case, model: nn.Module, batch: Batch, fused: bool = False) -> None:
        self.case, self.model, self.batch = case, model.train(), batch
        trained = [p for p in model.parameters() if p.requires_grad]
        fused = fused or case.device == 'cuda'
        self.optimizer = torch.optim.AdamW(
            trained, lr=1e-4, fused=fused or None, capturable=case.mode == 'graph'
        )
        # Torch compiles hooks of what it is given apart; of what that holds, in its graph.
        self.called: Any = torch.compile(_Held(model)) if case.mode == 'compile' else model

    def forward(self) -> Tensor:
        """The mean loss."""
        return self.case.losses(self.called, self.batch).mean()

    def __call__(self) -> None:
        """One step."""
        self.forward().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class _Held(nn.Module):
    """What holds a backbone, as a segmentor does."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.model(images))


class GraphStep(Step):
    """The same as one CUDA graph: no launch waits for Python."""

    def __init__(self, case: Case, model: nn.Module, batch: Batch) -> None:
        super().__init__(case, model, batch)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):  # what is made once is made before the capture
                super().__call__()
        torch.cuda.current_stream().wait_stream(beside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.forward().backward()
            self.optimizer.step()

    def __call__(self) -> None:
        """One step; the graph writes its gradients anew."""
        self.graph.replay()


STEPS: dict[str, type[Step]] = {'eager': Step, 'compile': Step, 'graph': GraphStep}


def compare_steps(
    case: Case,
    *,
    blocks: Sequence[str] = ('paper', 'spt'),
    peers: Sequence[str] = STEP_PEERS,
    builders: dict[str, Builder] | None = None,
    of_size: bool = True,
    keep_going: bool = False,
    until: float = math.inf,
) -> dict[str, Any]:
    """Times, parameters and saved bytes of a training step.

    Args:
        case: The setting.
        blocks: Block sizes of ours, see `make_block_plan`.
        peers: Which of `STEP_PEERS` to compare with; one that is not installed is
            skipped with a line.
        builders: Candidates by name, instead of those of `step_builders`.
        of_size: Whether to compare with LoRA of our number of parameters too.
        keep_going: Whether a candidate with an error is left out and named; otherwise only one
            that does not fit into memory is.
        until: Candidates whose turn to be made comes later than this are left out
            (`time.monotonic`).
    """
    references = {'frozen_limit': REFERENCE, 'peft_lora': LORA, 'full': FULL}
    compared = Candidates(case, 'step', references, keep_going, blocks=list(blocks))
    with quiet():
        builders = builders or step_builders(case, blocks, peers, compared.skipped, of_size)
        batch = case.make_batch()
        steps: dict[str, Step] = {}
        for name, build in builders.items():
            if time.monotonic() > until:
                compared.skipped[name] = 'left out: no time for it'
                continue
            with compared.fitting(name):
                before = allocated(case.device)
                step = STEPS[case.mode](case, build(case.make_model()), batch)
                compared.found[name] = {'trainable': models.trainable(step.model)}
                if case.mode == 'eager':
                    own = compared.found[name]
                    own['saved_bytes'] = saved_bytes(step.model, step.forward)
                    own['kept_bytes'] = kept_bytes(step.model)
                if case.device == 'cuda' and case.mode == 'eager':
                    compared.found[name] |= peaks_since(before, step, case.device)
                if case.mode == 'compile':
                    step()  # compiles
                steps[name] = step
        compared.time(steps)
    _compare_saved(compared.found)
    return compared.record


def _compare_saved(candidates: dict[str, dict[str, Any]]) -> None:
    """What each candidate keeps beyond the frozen base, over what LoRA keeps beyond it."""
    if 'saved_bytes' not in candidates.get(REFERENCE, {}):
        return
    base = candidates[REFERENCE]['saved_bytes']
    lora = candidates[LORA]['saved_bytes'] - base if LORA in candidates else 0
    for entry in candidates.values():
        entry['adapter_saved_bytes'] = entry['saved_bytes'] - base
        if lora > 0:
            ratio = entry['adapter_saved_bytes'] / lora
            entry['adapter_saved_bytes_ratio_vs_peft_lora'] = ratio


def step_builders(
    case: Case,
    blocks: Sequence[str],
    peers: Sequence[str],
    skipped: dict[str, str],
    of_size: bool = True,
    products: Sequence[str] = (),
) -> dict[str, Builder]:
    """The candidates by name; what cannot be compared is noted in `skipped`.

    Args:
        case: The setting.
        blocks: Block sizes of ours, see `make_block_plan`.
        peers: Which of `STEP_PEERS` to compare with.
        skipped: Gets a line for those that are not there.
        of_size: Whether to compare with LoRA of our number of parameters too.
        products: Ours by each of these products (`choose_product`); none for ours as it comes.
    """
    plain = case.make_model()
    plans = {kind: make_block_plan(plain, kind, seed=case.seed) for kind in blocks}
    builders: dict[str, Builder] = {REFERENCE: models.frozen_limit}
    for kind, plan in plans.items():
        ours = partial(models.ours, plan=plan, seed=case.seed)
        if not products:
            builders[f'ours {label(kind)}'] = ours
        for product in products:
            builders[f'ours {label(kind)}, {product}'] = partial(ours, product=product)
    builders |= models.peft_builders(peers, skipped)
    if LORA in builders:
        # The ranks that train about as much as ours; one candidate where they agree.
        sizes = (models.lora_rank_of_size(plain, p) for p in plans.values() if of_size)
        for rank in dict.fromkeys(sizes):
            builders.setdefault(f'peft LoRA r={rank}', partial(models.peft_lora, rank=rank))
    if 'mmpretrain' in peers:
        problem = models.mmpretrain_problem()
        if problem:
            skipped['mmpretrain LoRA'] = problem
        else:
            builders[f'mmpretrain LoRA r={models.LORA_RANK}'] = models.mmpretrain_lora
    builders[FULL] = models.full
    return builders
