"""What runs on the pretended GPU for its tests: ``python -m tests.tools.pretended_runs NAME OUT``.

A run writes what it found to OUT as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.pretended_gpu import Counts, counts, without_values

STEPS = 3


def values(folder: Path) -> dict[str, Any]:
    """Differences from the CPU, what is refused, and what is seen of values and counts."""
    found: dict[str, Any] = {}
    for name, autocast in (('fp32', False), ('autocast', True)):
        ours, theirs = (trained(device, autocast) for device in ('cuda', 'cpu'))
        assert {value.device.type for value in ours.values()} == {'cuda'}
        found[name] = largest_difference(ours, theirs)
    here, there = torch.ones(3, device='cuda'), torch.ones(3)
    index = torch.tensor([0], device='cuda')
    attempts = {
        'a sum': lambda: here + there,
        'a sum with a number': lambda: here + there[0],
        'indices on the CPU': lambda: here[index.cpu()],
        'indices on the GPU': lambda: there[index],
        'values on the CPU': lambda: here.index_put_((index,), there),
        'a generator': lambda: torch.randn(3, device='cuda', generator=torch.Generator()),
    }
    found['refused'] = [name for name, attempt in attempts.items() if is_refused(attempt)]
    found['shown'] = repr(here)
    with torch.inference_mode():  # there torch takes no operation apart before a mode sees it
        matrix = torch.arange(6.0, device='cuda').view(2, 3)
        found['inference'] = F.linear(matrix, matrix).t().reshape(-1).tolist()
    begin = counts()
    here + here
    middle = counts()
    with without_values():
        here + here
    found['launches'] = [(middle - begin).launches, (counts() - middle).launches]
    found['afterwards'] = (here + here).tolist()
    return found


def trained(device: str, autocast: bool) -> dict[str, Tensor]:
    """Weights after three steps of a small model."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 4, 4), nn.Flatten(2), nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 8)
    )
    if not autocast:  # of a CPU and of a GPU it leaves other operations in fp32
        model += nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, 0.0), nn.LayerNorm(8))
    images, wanted = torch.randn(2, 3, 8, 8).to(device), torch.randn(2, 16, 8).to(device)
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(3):
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            predicted = model(images)
        optimizer.zero_grad()
        F.mse_loss(predicted.float(), wanted).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.state_dict()


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((value.cpu() - theirs[key]).abs().max()) for key, value in ours.items())


def is_refused(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except RuntimeError as error:
        return 'same device' in str(error)
    return False


def openmmlab(folder: Path) -> dict[str, Any]:
    """Weights of runs on both devices, and counts of steps."""
    from cdra_mm.core.adapters import kernel_choice
    from tests.core.interpreted import multiply_bfloat16_exactly

    found: dict[str, Any] = {}
    with mock.patch('mmengine.device.utils.DEVICE', 'cpu'):
        expected, start = toy_weights(folder / 'cpu')
    found['moved'] = largest_difference(expected, start)
    with pytest.MonkeyPatch.context() as patch:
        multiply_bfloat16_exactly(patch)
        ours, _ = toy_weights(folder / 'kernels')
        found['kernels ran'] = kernel_choice.kernels_run(torch.device('cuda', 0))
    found['with kernels'] = largest_difference(ours, expected)
    with mock.patch.object(kernel_choice, 'kernels_run', lambda device: False):
        ours, _ = toy_weights(folder / 'plain')
        found['without kernels'] = largest_difference(ours, expected)
        found['logged'] = step_counts(folder / 'logged', layers=3, visualize=True)
        found['not logged'] = step_counts(folder / 'not_logged', layers=3, visualize=False)
        found['smaller'] = step_counts(folder / 'smaller', layers=2, visualize=False)
    return found


def toy_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights after and before the steps of a run."""
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    from tests.mm.toy import config

    class Begin(Hook):
        def before_train(self, runner: Runner) -> None:
            self.weights = weights_of(runner.model)

    folder.mkdir()
    cfg = config(
        folder,
        cdra=dict(product='copied', visualize=False, num_samples=4),  # a GPU's on both
        # AdamW would hide a wrong factor of a gradient, and make much of rounding.
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.5)),
    )
    cfg.train_cfg.max_iters = STEPS
    cfg.default_hooks.checkpoint = None
    runner, begin = Runner.from_cfg(cfg), Begin()
    runner.register_hook(begin, 'LOWEST')
    runner.train()
    return weights_of(runner.model), begin.weights


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().cpu().clone() for name, p in model.named_parameters()}


class EnoughError(Exception):
    """Ends a run whose values mean nothing."""


def step_counts(folder: Path, layers: int, visualize: bool) -> dict[str, Any]:
    """Counts of a run's last step, hooks and all, and launches of its optimizer."""
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    from tests.mm.toy import config

    begins: list[Counts] = []
    optimizing: list[Counts] = []
    stack = ExitStack()

    class Counted(Hook):
        """Values are computed until the first step: a plan is made by them."""

        def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
            if not begins:
                optimizer = runner.optim_wrapper.optimizer
                optimizer.register_step_pre_hook(lambda *_: optimizing.append(counts()))
                optimizer.register_step_post_hook(lambda *_: optimizing.append(counts()))
                stack.enter_context(without_values())
            begins.append(counts())
            if len(begins) == STEPS:
                raise EnoughError

    folder.mkdir()
    cfg = config(
        folder,
        'cls',  # mmseg measures its accuracy by tensors whose sizes depend on values
        cdra=dict(visualize=visualize, num_samples=4),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-2),
            paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=10.0)}),
        ),
        visualizer=dict(type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]),
    )
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint = None
    cfg.model.backbone.arch.num_layers = layers
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Counted(), 'HIGHEST')
    with stack, suppress(EnoughError):
        runner.train()
    groups = runner.optim_wrapper.optimizer.param_groups
    return {
        **asdict(begins[-1] - begins[-2]),
        'optimizing': (optimizing[-1] - optimizing[-2]).launches,
        'parameters': sum(len(group['params']) for group in groups),
    }


def graphs(folder: Path) -> dict[str, Any]:
    """Counts of eager steps, of a whole step as a CUDA graph, and of inductor's graphs."""
    import torch._inductor.config as inductor

    from cdra_mm.core.adapters.copied_weights import choose_product
    from cdra_mm.core.adapters.kernel_choice import kernels_run
    from cdra_mm.core.adapters.native_linear import NATIVE
    from tests.core.adapters.native import native
    from tests.core.problems import adapted
    from tests.models import images

    with mock.patch('cdra_mm.core.adapters.kernel_check.check_kernels', lambda device: None):
        assert kernels_run(torch.device('cuda', 0))  # nothing is computed: no check would pass
    inductor.triton.autotune_pointwise = False  # it takes time, and there is none to choose by
    inductor.compile_threads = 1

    def step_of(compiled: bool) -> Callable[[], None]:
        _, model, _ = adapted('fused', dtype=torch.float32)
        del model.blocks[1:]
        choose_product(model, 'copied')
        model.cuda()
        batch = images(3)[0].cuda()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, fused=True, capturable=True)
        called: Any = nn.Sequential(model)
        if compiled:
            called = torch.compile(called, mode='reduce-overhead')

        def step() -> None:
            with torch.autocast('cuda', torch.bfloat16):
                predicted = called(batch)
            predicted.float().square().mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    found = {'compiled': counts_of(step_of(compiled=True), 5)}
    step = step_of(compiled=False)
    with native(False):
        found['in Python'] = counts_of(step, 2)
    found['eager'] = counts_of(step, 3)
    found['taken'] = NATIVE.take(torch.device('cuda', 0), kept=False) is not None
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    found['whole step'] = counts_of(graph.replay, 2)
    return found


def counts_of(step: Callable[[], None], times: int) -> list[dict[str, int]]:
    """What each of some calls counts."""
    begins = [counts()]
    for _ in range(times):
        step()
        begins.append(counts())
    return [asdict(b - a) for a, b in zip(begins, begins[1:], strict=False)]


RUNS = {run.__name__: run for run in (values, openmmlab, graphs)}

if __name__ == '__main__':
    # mmengine imports it, and it half of what there is: most of the time of a short run.
    sys.modules['transformers'] = None  # type: ignore[assignment]
    name, out = sys.argv[1:]
    Path(out).write_text(json.dumps(RUNS[name](Path(out).parent)))
