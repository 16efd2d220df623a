"""Two processes on a CPU, joined by gloo, that share a base: ``python -m ... FOLDER``.

What `play` returns is saved for each of them; one process plays the same alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn import functional as F

from cdra_mm.core import (
    CDRAError,
    adapters,
    apply_plan,
    average_gradients,
    estimate_scores,
    find_targets,
    fingerprint,
    load_adapter,
    make_plan,
    merge_adapters,
    remove_adapters,
    save_adapter,
    shard_base,
)
from cdra_mm.core.model.sharded import is_sharded
from tests.models import MODELS, images, losses

CASES = {
    f'{kind}-{str(dtype)[6:]}': (kind, dtype)
    for kind, dtype in (
        ('fused', torch.float32),
        ('mha', torch.float32),
        ('swiglu', torch.bfloat16),
        ('windowed', torch.float32),
    )
}
COUNT = 2


def play(folder: Path, case: str) -> dict[str, Any]:
    """From scores to an adapter file, with a base shared by the processes or by one alone."""
    kind, dtype = CASES[case]
    torch.manual_seed(0)
    model = MODELS[kind]().to(dtype)
    x, y = images(8, dtype)
    batches = list(zip(x.split(2), y.split(2), strict=True))
    shared = dist.is_initialized()
    rank = dist.get_rank() if shared else 0

    def losses_in_fp32(model, batch):
        return F.cross_entropy(model(batch[0]).float(), batch[1], reduction='none')

    def add_up(sums, count):
        for total in sums:
            dist.all_reduce(total)
        counted = torch.tensor(count)
        dist.all_reduce(counted)
        return int(counted)

    scores = estimate_scores(
        model,
        batches[rank::COUNT] if shared else batches,
        losses_in_fp32,
        combine=add_up if shared else None,
    )
    plan = make_plan(scores, gamma=0.2, rank_rule='count', fingerprint=fingerprint(model))
    apply_plan(model, plan, keep_trainable=['head'], seed=rank)  # process 0 gives the values
    if shared:
        shard_base(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    model.eval()  # no dropout: it draws from the processes' own random numbers
    for _ in range(2):
        for share in [rank] if shared else range(COUNT):
            loss = losses_in_fp32(model, batches[share]).mean()
            (loss if shared else loss / COUNT).backward()
        if shared:
            average_gradients(model)
        optimizer.step()
        optimizer.zero_grad()
    path = folder / f'{case}_{COUNT if shared else 1}_{rank}.safetensors'
    save_adapter(model, path)
    base = [p for p in model.parameters() if not p.requires_grad]
    local = [p.to_local() if is_sharded(p) else p for p in base]
    return {
        'plan': plan.to_json(),
        'trained': {name: p.detach().clone() for name, p in trained.items()},
        'file': held_in(path),
        'sharded': [is_sharded(p) for p in base],
        'held': sum(p.numel() for p in local) / sum(p.numel() for p in base),
        'refusals': refusals(model, folder, path) if shared else {},
        'adapters': len(adapters(model)),
    }


def held_in(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Texts and tensors of a file, whose order safetensors draws by lot."""
    with safe_open(path, 'pt') as file:
        return file.metadata(), {name: file.get_tensor(name) for name in sorted(file.keys())}


def refusals(model, folder: Path, path: Path) -> dict[str, str]:
    """What each use of a shared model that needs whole weights says."""
    kind, dtype = CASES['fused-float32']
    plain = MODELS[kind]().to(dtype)
    fully_shard(plain)
    flat = FullyShardedDataParallel(
        MODELS[kind](), device_id=torch.device('cpu'), use_orig_params=True
    )
    batch = images(2, dtype)
    tried = {
        'score': lambda: estimate_scores(plain, [batch], losses),
        'targets': lambda: find_targets(plain),
        'flat': lambda: estimate_scores(flat, [batch], losses),
        'fingerprint': lambda: fingerprint(plain, ['head.weight']),
        'load': lambda: load_adapter(plain, path),
        'merge': lambda: merge_adapters(model),
        'remove': lambda: remove_adapters(model, discard=True),
        'again': lambda: shard_base(model),
        'too early': lambda: shard_base(MODELS[kind]()),
    }
    said = {}
    for name, use in tried.items():
        try:
            use()
            said[name] = 'nothing'
        except CDRAError as error:
            said[name] = f'{type(error).__name__}: {error}'
    return said


def run(folder: Path) -> None:
    """Plays all cases in two processes."""
    root = Path(__file__).resolve().parents[3]
    own = {'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo', 'CUDA_VISIBLE_DEVICES': '-1'}
    result = subprocess.run(
        [sys.executable, '-m', 'tests.core.adapters.sharded_run', str(folder)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **own, 'PYTHONPATH': str(root)},
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def main() -> None:
    folder = Path(sys.argv[1])
    children = []
    for rank in range(COUNT):
        child = os.fork()
        if not child:
            torch.set_num_threads(1)
            store = f'file://{folder}/store'
            wait = timedelta(seconds=120)
            dist.init_process_group('gloo', store, rank=rank, world_size=COUNT, timeout=wait)
            torch.save({case: play(folder, case) for case in CASES}, folder / f'{rank}.pt')
            os._exit(0)  # gloo's threads end with the process
        children.append(child)
    failed = [child for child in children if os.waitpid(child, 0)[1]]
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
