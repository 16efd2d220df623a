"""Trains an mmseg or mmpretrain model; adapts it where the config has CDRAHook or a `cdra` block.

A config that adapts:              cdra train cdra/demo
Any other config, adapted too:     cdra train CONFIG --cfg-options cdra.gamma=0.01
The one run whose figure counts:   cdra train vtab/cifar --final
"""

from __future__ import annotations

import argparse
from typing import Any

from cdra_mm.command_line import add_config_arguments, add_launcher_arguments, set_local_rank
from cdra_mm.heavy_imports import heavy_imports


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_config_arguments(parser)
    add_launcher_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help="go on from a checkpoint; without a name (or 'auto') from the latest one in the work "
        'directory, or from the start where there is none',
    )
    parser.add_argument(
        '--final',
        action='store_true',
        help='train once on training and validation images together and test at the end, as the '
        "config's final_run says; the default work directory ends in _final",
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision (needs a GPU)')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate to the batch size, relative to auto_scale_lr.base_batch_size',
    )


def main(args: argparse.Namespace) -> None:
    """Runs the command."""
    set_local_rank(args)

    with heavy_imports():
        from cdra_mm.mm.checkpoints.resuming import with_resume_advice
        from cdra_mm.mm.data_check import check_data
        from cdra_mm.mm.inputs import check_inputs, named_downloads, refuse_foreign_weights
        from cdra_mm.mm.late_faults import check_late_words
        from cdra_mm.mm.launch import (
            build_runner,
            end_processes,
            load_config,
            prepare_config,
            require_amp_device,
            set_work_dir,
            start_processes,
        )
        from cdra_mm.mm.parallel.processes import is_first_process
        from cdra_mm.mm.rebuild import plain_model
        from cdra_mm.mm.work_lock import hold_work_dir

    cfg = prepare_config(load_config(args.config, args.cfg_options, final_run=args.final))
    if args.amp:
        _set_amp(cfg)
    require_amp_device(cfg)
    if args.auto_scale_lr:
        _set_auto_scale_lr(cfg)
    check_inputs(cfg, 'train')
    remarks = check_data(cfg, 'train')
    suffix = '_final' if args.final else ''
    set_work_dir(cfg, args.config, args.work_dir, suffix=suffix)
    start_processes(cfg, args.launcher)
    # Until the process ends; before anything is written there.
    lock = hold_work_dir(cfg.work_dir) if is_first_process(args.launcher) else None  # noqa: F841
    if args.resume:
        _set_resume(cfg, args.resume)
    runner = build_runner(cfg)
    check_late_words(runner, 'train')
    for remark in remarks:
        runner.logger.warning(remark)
    refuse_foreign_weights(plain_model(runner))
    with named_downloads(cfg), with_resume_advice(cfg.work_dir):
        runner.train()
    end_processes()


def _set_amp(cfg: Any) -> None:
    from cdra_mm.errors import ConfigError

    wrapper = cfg.get('optim_wrapper')
    if not wrapper:
        return  # refused with the other parts that a training needs
    kind = wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ConfigError(f'--amp replaces OptimWrapper, and the config has {kind}: leave it out')
    wrapper.type = 'AmpOptimWrapper'
    wrapper.setdefault('loss_scale', 'dynamic')


def _set_auto_scale_lr(cfg: Any) -> None:
    from cdra_mm.errors import ConfigError

    if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise ConfigError(
            '--auto-scale-lr: the config does not say which batch size its learning rate is for '
            '(auto_scale_lr.base_batch_size)'
        )
    cfg.auto_scale_lr.enable = True


def _set_resume(cfg: Any, checkpoint: str) -> None:
    from cdra_mm.mm.backbone import keep_base
    from cdra_mm.mm.checkpoints.own_files import OwnFiles
    from cdra_mm.mm.checkpoints.resuming import check_whole, latest_checkpoint

    if checkpoint == 'auto':
        latest = latest_checkpoint(OwnFiles.of_config(cfg), print)
        if latest is None:
            print(f'no checkpoint in {cfg.work_dir}: starting from the beginning')
            return
        checkpoint = str(latest)
    check_whole(checkpoint)
    keep_base(cfg)
    cfg.resume, cfg.load_from = True, checkpoint
