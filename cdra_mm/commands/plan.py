"""Scores the backbone of a config and says what would be trained, without training.

    cdra plan cdra/demo
    cdra plan mine.py --cfg-options default_hooks.cdra.budget_percent=1.0
    cdra plan mine.py --dry-run --memory 80

The model is built and loaded and its training data are read as for a training. The log shows the
matrices with their ranks and blocks, what share of the scores they hold and what is unhealthy about
it; and, from a few iterations whose results are thrown away, what a training takes in seconds,
memory and checkpoint bytes. The plan is written into the work directory, and a config trains by it
with default_hooks.cdra.plan=PATH instead of scoring again. A plan does not hold where its factors
begin: with default_hooks.cdra.start=gradient, along the gradient, which is then computed again.

--dry-run says what scoring, planning and training would take, in bytes and of a GPU of so many GB.
It reads neither weights nor data, and has no need of the memory.
"""

from __future__ import annotations

import argparse

from cdra_mm.command_line import add_config_arguments, command
from cdra_mm.heavy_imports import heavy_imports


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_config_arguments(parser)
    parser.add_argument(
        '--work-dir',
        help='where the plan and the log go (default: ./work_dirs/<name of the config>_plan)',
    )
    dry = parser.add_argument_group('without loading anything')
    dry.add_argument('--dry-run', action='store_true', help='say the bytes, and make no plan')
    dry.add_argument(
        '--memory', type=float, default=80, metavar='GB', help='of the GPU (default: 80)'
    )
    dry.add_argument(
        '--batch', type=int, metavar='N', help="images a step (default: the training loader's)"
    )
    dry.add_argument(
        '--image-size', type=int, metavar='PX', help="side of the images (default: the config's)"
    )
    dry.add_argument(
        '--time-blocks',
        type=int,
        default=0,
        metavar='N',
        help='make the first N blocks with random weights, and time them',
    )


def main(args: argparse.Namespace) -> None:
    """Plans and writes the plan, or says what that would take."""
    _check(args)
    if args.dry_run:
        _say_sizes(args)
        return
    with heavy_imports():
        from cdra_mm.mm.data_check import check_data
        from cdra_mm.mm.hook import CDRAHook
        from cdra_mm.mm.inputs import check_inputs, named_downloads, refuse_foreign_weights
        from cdra_mm.mm.late_faults import check_late_words
        from cdra_mm.mm.launch import build_runner, load_config, prepare_config, set_work_dir
        from cdra_mm.mm.plan_only import plan_only
        from cdra_mm.mm.rebuild import plain_model
        from cdra_mm.mm.work_lock import hold_work_dir

    cfg = prepare_config(load_config(args.config, args.cfg_options))
    check_inputs(cfg, 'train')
    remarks = check_data(cfg, 'train')
    set_work_dir(cfg, args.config, args.work_dir, suffix='_plan')
    hooks = dict(cfg.get('default_hooks') or {})
    saving = hooks.get('checkpoint', dict(type='CheckpointHook'))  # mmengine's, where none is named
    if saving:  # the iterations that are timed leave nothing behind
        never = dict(interval=-1, save_last=False, save_best=None)
        cfg.default_hooks = {**hooks, 'checkpoint': {**saving, **never}}
    lock = hold_work_dir(cfg.work_dir)  # noqa: F841  # until the process ends
    runner = build_runner(cfg)
    check_late_words(runner, 'train')
    for remark in remarks:
        runner.logger.warning(remark)
    refuse_foreign_weights(plain_model(runner))
    with named_downloads(cfg):
        path = plan_only(runner)
    print(f'written: {path}')
    options = [f'default_hooks.cdra.plan={path}']
    if any(hook.method.needs_start for hook in runner.hooks if isinstance(hook, CDRAHook)):
        options.append('default_hooks.cdra.start=gradient')
    follow = command('train', args.config, '--cfg-options', *options)
    print(f'train by it: {follow}')


def _check(args: argparse.Namespace) -> None:
    """Refuses numbers that are none, and those of a dry run without one."""
    from cdra_mm.errors import ConfigError

    given = {
        '--batch': args.batch,
        '--image-size': args.image_size,
        '--time-blocks': args.time_blocks or None,
    }
    for name, value in given.items():
        if value is not None and not args.dry_run:
            raise ConfigError(f'{name} {value}: belongs to --dry-run, which was not given')
        if value is not None and value < 1:
            raise ConfigError(f'{name} {value}: expected at least 1')
    if not 0 < args.memory < float('inf'):
        raise ConfigError(f'--memory {args.memory:g}: expected GB of a GPU, above 0')


def _say_sizes(args: argparse.Namespace) -> None:
    from cdra_mm.mm.dry_run import describe_dry_run
    from cdra_mm.mm.launch import load_config, prepare_config

    cfg = prepare_config(load_config(args.config, args.cfg_options))
    sizes = dict(batch=args.batch, size=args.image_size, blocks=args.time_blocks)
    print(describe_dry_run(cfg, memory=args.memory, **sizes))
