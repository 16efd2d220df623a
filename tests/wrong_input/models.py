"""Models that cannot be merged, exported or trained in part, and places that are not written to."""

from __future__ import annotations

import io
import os
import sys
from contextlib import redirect_stderr
from runpy import run_path
from unittest import mock

import pytest
import torch
from mmengine.config import Config

from cdra_mm.core import (
    CheckpointError,
    ConfigError,
    PlanError,
    ScoreError,
    estimate_scores,
    merge_adapters,
    quantize_base,
    restore_base,
)
from cdra_mm.methods import Request, make_method
from cdra_mm.methods.base import FROZEN, UNREACHED
from cdra_mm.mm.export.formats import FORMATS, Export, check_options
from cdra_mm.mm.export.merging import merge_checkpoint
from cdra_mm.mm.export.outputs import random_image
from cdra_mm.mm.painting import paint_predictions
from cdra_mm.mm.planning.run_plan import RunPlanner
from tests.mm.test_merging_models import Fixed, of, trained
from tests.mm.toy import base_file
from tests.models import TinyViT, images, losses
from tests.tools.project import REPOSITORY

from .case import heading
from .settings import plan


def export(folder, name, to='merged', make=lambda path: path.write_text('mine'), **options):
    """Asks for an export with ``--force``; what lies at its place has to stay."""
    force = options.pop('force', True)
    cfg = options.pop('cfg', Config())
    out = folder / name
    make(out)
    before = out.read_bytes() if out.is_file() else None
    try:
        check_options(Export(cfg, str(folder / 'iter_2.pth'), out, **options), to, force)
    finally:
        assert before is None or out.read_bytes() == before


def needs_onnx():
    for package in ('onnx', 'onnxscript', 'onnxruntime'):
        pytest.importorskip(package, reason=f'{package} (extra export) is not installed')


with heading('Models and export') as (refused, taken):

    @taken('a model of one or of six channels', 'compared on images of its own channels, merged')
    def _(folder):
        for channels in (1, 6):
            cfg = of(folder, channels=channels)
            merged = merge_checkpoint(cfg, trained(cfg, folder))
            assert merged.image.shape[1] == channels and merged.compared == 'output'

    @refused(
        'a checkpoint of six channels with a config of three',
        CheckpointError,
        'does not fit the model of the config',
    )
    def _(folder):
        merge_checkpoint(of(folder), trained(of(folder, channels=6), folder))

    @refused(
        'a checkpoint without adapters to merge',
        CheckpointError,
        'it is a plain checkpoint already',
    )
    def _(folder):
        torch.save({'state_dict': {'backbone.w': torch.ones(2)}}, folder / 'a.pth')
        merge_checkpoint(of(folder), str(folder / 'a.pth'))

    @refused(
        'a merge into a base in int8',
        PlanError,
        'a merge would be rounded to it; put the base in full precision back first',
    )
    def _(folder):
        merge_adapters(quantize_base(TinyViT()))

    @refused(
        'a base that is not the one that was quantised',
        PlanError,
        'the base given is not the one that was quantised (8 tensors differ: blocks.0.attn.',
    )
    def _(folder):
        restore_base(quantize_base(TinyViT()), TinyViT().state_dict())

    @refused(
        'scores of a base in int8',
        ScoreError,
        'is kept in int8, which gets no gradient: score the base in full precision',
    )
    def _(folder):
        estimate_scores(quantize_base(TinyViT()), [images(2)], losses)

    @refused(
        'a base in half precision that shall be in int8',
        PlanError,
        'only fp32 matrices can be kept in int8; load the base in fp32',
    )
    def _(folder):
        quantize_base(TinyViT().half())

    @refused('a run that diverged', CheckpointError, 'is not finite, so its run has diverged')
    def _(folder):
        def diverge(model):
            model.backbone.ln1.weight.data.fill_(float('inf'))

        merge_checkpoint(of(folder), trained(of(folder), folder, diverge))

    @refused(
        'a backbone that takes no image of the size of its config',
        ConfigError,
        'takes no image of 9 x 9 pixels',
    )
    def _(folder):
        random_image(Fixed(), (9, 9))

    @taken(
        'a head that asks for more than images',
        'backbone and neck are compared, and the line says why',
    )
    def _(folder):
        cfg = of(folder, head='NeedsSamples')
        assert merge_checkpoint(cfg, trained(cfg, folder)).compared == 'feature'

    @refused('the same in ONNX', ConfigError, 'a model whose head asks for more than images is not')
    def _(folder):
        needs_onnx()
        cfg = of(folder, head='NeedsSamples')
        try:
            FORMATS['onnx'](Export(cfg, trained(cfg, folder), folder / 'a.onnx'))
        finally:
            assert sorted(os.listdir(folder)) == ['a.pth', 'base.pth']

    @refused('a model above 2 GiB in ONNX', ConfigError, 'an ONNX file holds less than 2 GiB')
    def _(folder):
        needs_onnx()
        from cdra_mm.mm.export.onnx_export import export_onnx

        with torch.device('meta'):
            model = torch.nn.Linear(2**15, 2**14)
        export_onnx(model, folder / 'a.onnx', (3, 8, 8), {})

    @taken(
        'a format that is none: `--format tflite`',
        'one line with the formats that there are, exit code 2',
    )
    def _(folder):
        words = ['merge.py', 'config.py', 'iter_2.pth', str(folder / 'out'), '--format', 'tflite']
        said = io.StringIO()
        with mock.patch.object(sys, 'argv', words), redirect_stderr(said):
            with pytest.raises(SystemExit) as caught:
                run_path(str(REPOSITORY / 'tools/merge.py'), run_name='__main__')
        assert caught.value.code == 2
        last = said.getvalue().splitlines()[-1]
        assert "invalid choice: 'tflite'" in last and all(name in last for name in FORMATS)

    @refused(
        'an option of another format',
        ConfigError,
        '--names is for --format peft or peft-cdra, not merged',
    )
    def _(folder):
        export(folder, 'out.pth', names='timm')

    @refused('`--shape 0 64`', ConfigError, '--shape 0 64: expected pixels, 1 or more')
    def _(folder):
        export(folder, 'out.onnx', 'onnx', shape=(0, 64))

    @refused('a destination that is there, without `--force`', CheckpointError, 'exists (--force')
    def _(folder):
        export(folder, 'out.pth', force=False)

    @refused('`--force` over the config', CheckpointError, 'is the config, which is read')
    def _(folder):
        (folder / 'config.py').write_text('a = 1')
        cfg = Config.fromfile(folder / 'config.py')
        export(folder, 'config.py', cfg=cfg, make=lambda path: None)

    @refused(
        '`--force` over the base weights, by another name',
        CheckpointError,
        'is the base weights (model.backbone.init_cfg.checkpoint), which is read',
    )
    def _(folder):
        cfg = of(folder)
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=base_file(folder))
        export(folder, 'link.pth', cfg=cfg, make=lambda path: path.hardlink_to(folder / 'base.pth'))

    @refused(
        '`--force` over a checkpoint of another run', CheckpointError, 'is no merged checkpoint'
    )
    def _(folder):
        run = {'state_dict': {}, 'message_hub': {}, 'optimizer': {}}
        export(folder, 'iter_4.pth', make=lambda path: torch.save(run, path))

    @refused(
        '`--force` of a folder over one with other files',
        CheckpointError,
        'is no folder of a PEFT adapter alone',
    )
    def _(folder):
        def make(path):
            path.mkdir()
            (path / 'thesis.tex').write_text('mine')

        try:
            export(folder, 'out', 'peft', make)
        finally:
            assert (folder / 'out/thesis.tex').read_text() == 'mine'

    @refused(
        'a folder where a file is to be written',
        CheckpointError,
        'a file is to be written: nothing',
    )
    def _(folder):
        export(folder, 'out.onnx', 'onnx', lambda path: path.mkdir())

    @refused('a pipe as the file to write', CheckpointError, 'is no file, and a file is to be')
    def _(folder):
        export(folder, 'out.pth', make=os.mkfifo)

    @refused(
        '`--show-dir` of another package', ConfigError, '--show-dir is for mmseg and mmpretrain'
    )
    def _(folder):
        paint_predictions(Config(dict(default_scope='mmdet')), str(folder / 'shown'))


def withheld(model, *paths, why=FROZEN):
    return dict.fromkeys((n for n, _ in model.named_parameters() if n.startswith(paths)), why)


with heading('Plans') as (refused, taken):

    @refused(
        'a backbone that its config freezes whole',
        PlanError,
        'nothing is left to train in TinyViT: it freezes',
    )
    def _(folder):
        model = TinyViT()
        make_method({'type': 'bias'}).plan(Request(model, withheld=withheld(model, '')))

    @refused(
        'a plan file that trains what the backbone freezes',
        PlanError,
        'parameters that cannot be trained here (the first is blocks.',
    )
    def _(folder):
        model = TinyViT()
        Request(model, withheld=withheld(model, 'blocks.')).check(plan())

    @refused(
        'a plan file that adapts what the loss does not depend on',
        PlanError,
        'the training loss does not depend on it',
    )
    def _(folder):
        model = TinyViT()
        Request(model, withheld=withheld(model, 'blocks.', why=UNREACHED)).check(plan())

    @taken(
        'a backbone that freezes some of its blocks',
        'what they hold does not compete; the budget goes to the others',
    )
    def _(folder):
        model = TinyViT()
        request = Request(model, withheld=withheld(model, 'blocks.0.'))
        made = make_method({'type': 'bias'}).plan(request)
        request.check(made)
        assert made.also_train and not any(n.startswith('blocks.0.') for n in made.also_train)

    @refused(
        '`also_train` of a parameter that the backbone freezes',
        ConfigError,
        "also_train: 'pos_embed' cannot be trained, the backbone freezes it itself",
    )
    def _(folder):
        model = TinyViT()
        planner = RunPlanner(make_method({'type': 'bias'}), 8, None, None, 'pos_embed', 0, None)
        planner._trained_whole(Request(model, withheld=withheld(model, 'pos_embed')))
