"""What each process of a group does (`ddp_run`); the tests call the same in a single process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.runner import Runner
from torch import Tensor, nn

from cdra_mm.core import remove_adapters
from cdra_mm.methods import METHODS
from cdra_mm.mm import rate_watch
from cdra_mm.mm.planning.head_fit import fit_head
from cdra_mm.mm.planning.scoring import score_backbone
from cdra_mm.mm.planning.withheld import withheld_parameters
from tests.mm import test_methods_runs, toy

WRAPPER = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)
Weights = dict[str, Tensor]


def distributed(cfg: Any) -> Any:
    """A config for a process of a group; as it is where there is only one."""
    if get_world_size() > 1:
        cfg.launcher, cfg.model_wrapper_cfg = 'pytorch', WRAPPER
        cfg.work_dir += f'_{get_world_size()}'
    return cfg


def ready(folder: Path, task: str = 'seg', **options: Any) -> Runner:
    """A runner as it is when the hook scores."""
    cfg = toy.config(folder, task, work_dir=str(folder / 'ready'), **options)
    cfg.train_dataloader.dataset.jitter = True
    runner = Runner.from_cfg(distributed(cfg))
    runner.train_loop  # noqa: B018 - builds it
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner._init_model_weights()
    return runner


def plain(runner: Runner) -> nn.Module:
    return getattr(runner.model, 'module', runner.model)


def score(runner: Runner, **options: Any) -> Weights:
    options = dict(num_samples=8, batch_size=2, statistic='per_sample', seed=0) | options
    return score_backbone(runner, plain(runner).backbone, **options)[0]


def state(runner: Runner) -> Weights:
    return {key: value.clone() for key, value in plain(runner).state_dict().items()}


# Scoring.


def per_sample(folder: Path) -> tuple[Weights, list[int]]:
    """Scores, and the sizes of what was all-reduced for them."""
    runner, sizes, real = ready(folder), [], dist.all_reduce

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(tensor.numel())
        return real(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        return score(runner), sizes
    finally:
        dist.all_reduce = real


def in_bfloat16(folder: Path) -> Weights:
    return score(ready(folder), dtype=torch.bfloat16)


def per_batch(folder: Path) -> Weights:
    return score(ready(folder), statistic='per_batch', batch_size=3)


def summed(folder: Path) -> Weights:
    return score(ready(folder), statistic='summed', batch_size=3)


def two_samples(folder: Path) -> Weights:
    return score(ready(folder), num_samples=2)


def one_share_without_gradient(folder: Path) -> Weights:
    """The samples of all but the first of two or three processes have ignored pixels only."""
    runner = ready(folder)
    samples = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:6].sort().values
    ignored = np.full((toy.SIZE, toy.SIZE), 255, np.uint8)
    drawn, real = samples.tolist(), toy.picture
    toy.picture = lambda i: (real(i)[0], real(i)[1] if i in drawn[::6] else ignored)
    try:
        return score(runner, num_samples=6)
    finally:
        toy.picture = real


def loss_that_averages_over_processes(folder: Path) -> Weights:
    runner = ready(folder)
    model = plain(runner)
    real = model.loss

    def loss(inputs: Tensor, samples: Any) -> dict[str, Tensor]:
        weight = 1.0 + samples[0].gt_sem_seg.data.float().mean()
        all_reduce(weight, 'mean')
        return {key: value * weight for key, value in real(inputs, samples).items()}

    model.loss = loss
    return score(runner, num_samples=7)


def image_that_is_broken(folder: Path) -> Weights:
    runner = ready(folder)
    broken = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:8].max()
    real = toy.picture

    def picture(index: int) -> Any:
        if index == broken:
            raise OSError('broken data stream')
        return real(index)

    toy.picture = picture
    try:
        return score(runner)
    finally:
        toy.picture = real


def bug_on_one_process(folder: Path) -> Weights:
    runner = ready(folder)
    if get_rank() == 1:
        plain(runner).extract_feat = None
    return score(runner)


# Training.


def training(folder: Path) -> Weights:
    """A segmentor, from the fit of its head to its last iteration."""
    cfg = toy.config(folder, work_dir=str(folder / 'training'), cdra=dict(head_iters=None))
    cfg.train_dataloader.batch_size = 2
    cfg.train_dataloader.dataset.jitter = True
    cfg.train_cfg.max_iters = 3
    runner = toy.train(distributed(cfg))
    if get_world_size() > 1:
        assert type(runner.model).__name__ == WRAPPER['type']
        assert not runner.model.find_unused_parameters
    return state(runner)


def head_that_fails_on_one_process(folder: Path) -> bool:
    """Whether all leave it as it was."""
    runner = ready(folder)
    before = state(runner)

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError('of one process')

    if get_rank() == 1:
        plain(runner).decode_head.forward = fails
    fitted = fit_head(runner, plain(runner).backbone, None, seed=0)
    return not fitted and all(torch.equal(v, before[name]) for name, v in state(runner).items())


def trained_in_int8(folder: Path) -> Weights:
    """The same over a base in int8."""
    cfg = toy.config(folder, work_dir=str(folder / 'int8'), cdra=dict(base_dtype='int8'))
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.max_iters = 2
    return state(toy.train(distributed(cfg)))


def classifier(folder: Path, **options: Any) -> Any:
    """Accumulation and an EMA; four samples an iteration, whatever the number of processes."""
    cfg = toy.config(folder, 'cls', work_dir=str(folder / 'classifier'), **options)
    cfg.custom_hooks = [dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.3)]
    cfg.optim_wrapper.accumulative_counts = 2
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.5)
    cfg.train_dataloader.batch_size = 4 // get_world_size()
    return distributed(cfg)


def averaged(runner: Runner) -> tuple[Weights, Weights]:
    """Weights and their average."""
    ema = next(hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook')
    return state(runner), {k: v.clone() for k, v in ema.ema_model.state_dict().items()}


def averaging(folder: Path) -> tuple[Weights, Weights]:
    return averaged(toy.train(classifier(folder)))


def resumed_from_one(folder: Path) -> tuple[Weights, Weights]:
    """Goes on in a group with what a single process began."""
    cfg = classifier(folder, resume=True, load_from=str(folder / 'classifier/iter_4.pth'))
    cfg.work_dir += '_resumed'
    return averaged(toy.train(cfg))


def tested(folder: Path) -> dict[str, float]:
    """Metrics of a checkpoint that a single process has written."""
    cfg = classifier(folder, load_from=str(folder / 'classifier/iter_4.pth'))
    cfg.work_dir += '_tested'
    return Runner.from_cfg(cfg).test()


def early_out_indices(folder: Path) -> tuple[dict[str, str], list[str]]:
    """What is withheld behind the last of ``out_indices``, and what two steps have trained."""
    cfg = test_methods_runs.config(folder, 'partial', work_dir=str(folder / 'early'), task='seg')
    cfg.model.backbone.out_indices = (1,)
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.max_iters = 2
    runner = toy.train(distributed(cfg))
    backbone = plain(runner).backbone
    trained = [n for n, p in backbone.named_parameters() if p.requires_grad]
    backbone.requires_grad_(True)
    remove_adapters(backbone)
    return withheld_parameters(runner, backbone, 0), trained


def probe_that_fails_on_one_process(folder: Path) -> dict[str, str]:
    runner = ready(folder)
    if get_rank() == 1:
        plain(runner).loss = None
    plain(runner).backbone.register_parameter('unused', nn.Parameter(torch.zeros(1)))
    return withheld_parameters(runner, plain(runner).backbone, 0)


def all_methods(folder: Path) -> dict[str, tuple[Weights, list[str]] | str]:
    """Weights after two steps of every method and the names of what is trained, or the error."""
    ends: dict[str, Any] = {}
    for name in METHODS:
        cfg = test_methods_runs.config(folder, name, 'cls', work_dir=str(folder / name))
        cfg.train_cfg.max_iters = 2
        cfg.default_hooks.checkpoint.interval = 100
        cfg.default_hooks.cdra.num_samples = 4
        try:
            runner = toy.train(distributed(cfg))
        except Exception as error:
            ends[name] = f'{type(error).__name__}: {error}'
            continue
        assert not runner.model.find_unused_parameters
        trained = [n for n, p in plain(runner).named_parameters() if p.requires_grad]
        ends[name] = state(runner), trained
    return ends


def ruinous_rate(folder: Path) -> dict[str, Any] | None:
    """What the rate's watch has noted; it looks after the second iteration."""
    cfg = toy.config(folder, 'cls', work_dir=str(folder / 'ruinous'))
    cfg.optim_wrapper.optimizer.lr = 10.0
    cfg.train_cfg.max_iters = 3
    first, rate_watch.FIRST = rate_watch.FIRST, 2
    try:
        return toy.train(distributed(cfg)).message_hub.runtime_info.get(rate_watch.KEY)
    finally:
        rate_watch.FIRST = first
