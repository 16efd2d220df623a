"""One process of a distributed CPU run: ``torchrun ... ddp_run.py FOLDER``."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.mm import toy


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo')
    folder = Path(sys.argv[1])
    batch = 4 // dist.get_world_size()
    cfg = toy.config(folder, work_dir=str(folder / 'ddp'), launcher='pytorch')
    cfg.experiment_name = 'ddp'
    cfg.train_dataloader.batch_size = batch
    cfg.model_wrapper_cfg = dict(
        type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False
    )
    resume = len(sys.argv) > 2
    if resume:
        cfg.resume, cfg.load_from = True, str(folder / 'ddp/iter_4.pth')
    runner = toy.train(cfg)
    wrapped = runner.model
    assert type(wrapped).__name__ == 'MMDistributedDataParallel', type(wrapped)
    assert not wrapped.find_unused_parameters
    state = wrapped.module.state_dict()
    name = f'rank{os.environ["RANK"]}{"_resumed" if resume else ""}.pth'
    torch.save({k: v.clone() for k, v in state.items()}, folder / name)


if __name__ == '__main__':
    main()
