"""Tests a checkpoint of an mmseg or mmpretrain model, adapted or plain.

cdra test cdra/demo work_dirs/demo/iter_300.pth
The metrics are printed and written to summary.json in the work directory.
"""

from __future__ import annotations

import argparse
from typing import Any

from cdra_mm.command_line import add_config_arguments, add_launcher_arguments, set_local_rank
from cdra_mm.heavy_imports import heavy_imports


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='path or address of the checkpoint')
    add_launcher_arguments(parser)
    parser.add_argument(
        '--out',
        help='mmseg: folder for the predicted label maps (PNG); mmpretrain: a .pkl file for the '
        'predictions',
    )
    parser.add_argument('--show-dir', help='folder for the painted predictions')
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation: the config's tta_pipeline and tta_model, or, where it has "
        'none, an image and its mirror image, averaged',
    )


def main(args: argparse.Namespace) -> None:
    """Runs the command."""
    set_local_rank(args)

    from mmengine.dist import is_main_process
    from mmengine.evaluator import DumpResults

    with heavy_imports():
        from cdra_mm.mm.backbone import attach_loader, keep_base
        from cdra_mm.mm.checkpoints.base_source import named_bases
        from cdra_mm.mm.data_check import check_data
        from cdra_mm.mm.inputs import check_inputs, named_downloads, refuse_foreign_weights
        from cdra_mm.mm.late_faults import check_late_words
        from cdra_mm.mm.launch import (
            build_runner,
            end_processes,
            load_config,
            prepare_config,
            set_work_dir,
            start_processes,
        )
        from cdra_mm.mm.rebuild import plain_model
        from cdra_mm.mm.summary import update_summary
        from cdra_mm.mm.test_time import set_test_time_augmentation

    cfg = prepare_config(load_config(args.config, args.cfg_options))
    keep_base(cfg)
    cfg.load_from, cfg.resume = args.checkpoint, False
    check_inputs(cfg, 'test')
    remarks = check_data(cfg, 'test')
    _set_outputs(cfg, args.out, args.show_dir)
    if args.tta:
        set_test_time_augmentation(cfg)
    set_work_dir(cfg, args.config, args.work_dir)
    start_processes(cfg, args.launcher)
    runner = build_runner(cfg, keep_config=True)
    check_late_words(runner, 'test')
    for remark in remarks:
        runner.logger.warning(remark)
    model = plain_model(runner)
    refuse_foreign_weights(model)
    if hasattr(model, 'backbone'):
        # A config without the hook loads adapted checkpoints all the same.
        attach_loader(model.backbone, named_bases(cfg, model))
    if args.out and cfg.default_scope == 'mmpretrain':
        runner.test_evaluator.metrics.append(DumpResults(args.out))
    with named_downloads(cfg):
        metrics = runner.test()
    if is_main_process():
        update_summary(cfg.work_dir, {'test_metrics': metrics})
    end_processes()


def _set_outputs(cfg: Any, out: str | None, show_dir: str | None) -> None:
    from pathlib import Path

    from cdra_mm.errors import ConfigError
    from cdra_mm.mm.export.destination import check_destination
    from cdra_mm.mm.inputs import check_output_folder, named_files
    from cdra_mm.mm.painting import paint_predictions

    scope = cfg.get('default_scope')
    if out and scope not in ('mmseg', 'mmpretrain'):
        raise ConfigError(f'--out is for mmseg and mmpretrain, not {scope}')
    if out and scope == 'mmseg':
        evaluator = cfg.test_evaluator
        (evaluator[0] if isinstance(evaluator, list) else evaluator)['output_dir'] = out
    if out and scope == 'mmpretrain' and not out.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out {out}: predictions of a classifier are written as .pkl')
    if out and scope == 'mmpretrain':
        check_destination(Path(out), named_files(cfg), force=True)
    for option, folder in (('--out', out if scope == 'mmseg' else None), ('--show-dir', show_dir)):
        if folder:
            check_output_folder(cfg, folder, option)
    if show_dir:
        paint_predictions(cfg, show_dir)
