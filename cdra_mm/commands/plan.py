"""Scores the backbone of a config and says what would be trained, without training.

    cdra plan cdra/demo
    cdra plan mine.py --cfg-options default_hooks.cdra.budget_percent=1.0

The model is built and loaded and its training data are read as for a training. The log shows the
matrices with their ranks and blocks; the plan is written into the work directory, and a config
trains by it with default_hooks.cdra.plan=PATH instead of scoring again.
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


def main(args: argparse.Namespace) -> None:
    """Plans and writes the plan."""
    with heavy_imports():
        from cdra_mm.mm.data_check import check_data
        from cdra_mm.mm.inputs import check_inputs, named_downloads, refuse_foreign_weights
        from cdra_mm.mm.launch import build_runner, load_config, prepare_config, set_work_dir
        from cdra_mm.mm.plan_only import plan_only
        from cdra_mm.mm.rebuild import plain_model
        from cdra_mm.mm.work_lock import hold_work_dir

    cfg = prepare_config(load_config(args.config, args.cfg_options))
    check_inputs(cfg, 'train')
    remarks = check_data(cfg, 'train')
    set_work_dir(cfg, args.config, args.work_dir, suffix='_plan')
    lock = hold_work_dir(cfg.work_dir)  # noqa: F841  # until the process ends
    runner = build_runner(cfg)
    for remark in remarks:
        runner.logger.warning(remark)
    refuse_foreign_weights(plain_model(runner))
    with named_downloads(cfg):
        path = plan_only(runner)
    print(f'written: {path}')
    follow = command('train', args.config, '--cfg-options', f'default_hooks.cdra.plan={path}')
    print(f'train by it: {follow}')
