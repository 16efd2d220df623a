"""What a tool reads, and what it could not have written, is never replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import save_file

from cdra_mm.core import CheckpointError, ConfigError
from cdra_mm.mm.export.destination import is_weights
from cdra_mm.mm.export.formats import Export, check_options
from cdra_mm.mm.inputs import check_output_folder


@pytest.fixture
def folder(tmp_path):
    """What a merge reads, and what earlier ones have left."""
    (tmp_path / 'mine.py').write_text('a = 1\n')
    (tmp_path / 'plan.json').write_text('{}')
    run = {'state_dict': {}, 'message_hub': {}, 'optimizer': {}}
    torch.save(run, tmp_path / 'iter_2.pth')
    torch.save({'state_dict': {}, 'meta': {'cdra_merged': {}}}, tmp_path / 'merged.pth')
    for name in ('base', 'loaded'):
        torch.save({'state_dict': {}}, tmp_path / f'{name}.pth')
    tensors = {'a': torch.zeros(1)}
    save_file(tensors, tmp_path / 'adapter.safetensors', metadata={'format': 'cdra_mm.adapter'})
    save_file(tensors, tmp_path / 'base.safetensors', metadata={'format': 'pt'})
    (tmp_path / 'a.onnx').write_bytes(b'graph' + json.dumps({'num_adapters': 1}).encode())
    for name, files in {'peft': 2, 'peft_and_notes': 3}.items():
        (tmp_path / name).mkdir()
        for file in ('adapter_config.json', 'adapter_model.safetensors', 'notes.md')[:files]:
            (tmp_path / name / file).write_text('{}')
    return tmp_path


def check(folder: Path, out: Path | str, to: str = 'merged', force: bool = True) -> None:
    cfg = Config.fromfile(folder / 'mine.py')
    base = dict(type='Pretrained', checkpoint=str(folder / 'base.pth'))
    cfg.merge_from_dict(
        dict(
            model=dict(backbone=dict(init_cfg=base)),
            load_from=str(folder / 'loaded.pth'),
            default_hooks=dict(cdra=dict(plan=str(folder / 'plan.json'))),
        )
    )
    check_options(Export(cfg, str(folder / 'iter_2.pth'), folder / out), to, force)


INPUTS = {
    'iter_2.pth': 'is the checkpoint, which is read',
    'mine.py': 'is the config, which is read',
    'base.pth': r'is the base weights \(model.backbone.init_cfg.checkpoint\), which is read',
    'loaded.pth': 'is load_from of the config, which is read',
    'plan.json': 'is the plan, which is read',
}


@pytest.mark.parametrize('name', INPUTS)
def test_an_input_is_not_replaced_under_any_name(folder, name, monkeypatch):
    os.link(folder / name, folder / 'hard')
    (folder / 'soft').symlink_to(name)
    monkeypatch.chdir(folder)
    for out in (name, f'./x/../{name}', 'hard', 'soft', Path.cwd() / name):
        (folder / 'x').mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match=INPUTS[name]):
            check(folder, out)


@pytest.mark.parametrize(
    ('out', 'to'),
    [
        ('merged.pth', 'merged'),
        ('adapter.safetensors', 'adapter'),
        ('peft', 'peft'),
        ('a.onnx', 'onnx'),
    ],
)
def test_force_replaces_its_own_kind_alone(folder, out, to):
    check(folder, out, to)
    check(folder, f'new_{out}', to, force=False)
    with pytest.raises(CheckpointError, match='exists .--force replaces it.'):
        check(folder, out, to, force=False)
    others = ['merged.pth', 'adapter.safetensors', 'base.safetensors', 'a.onnx', 'other.pth']
    others = ['peft_and_notes'] if to == 'peft' else [name for name in others if name != out]
    (folder / 'other.pth').write_bytes((folder / 'iter_2.pth').read_bytes())
    for other in others:
        with pytest.raises(CheckpointError, match=f'{other} is no .* move it away'):
            check(folder, other, to)


def test_a_device_a_pipe_or_a_folder_is_not_replaced(folder):
    os.mkfifo(folder / 'pipe')
    (folder / 'link').symlink_to('/dev/null')
    for out in ('/dev/null', 'pipe', 'link', 'peft'):
        with pytest.raises(CheckpointError, match='and a file is to be written'):
            check(folder, out)
    with pytest.raises(CheckpointError, match='is a file, and a folder is to be written'):
        check(folder, 'merged.pth', 'peft')


def test_converted_weights_replace_weights_only(folder):
    assert is_weights(folder / 'base.pth') and is_weights(folder / 'base.safetensors')
    for name in ('iter_2.pth', 'adapter.safetensors', 'mine.py', 'a.onnx'):
        assert not is_weights(folder / name), name


@pytest.mark.parametrize('out', ['data/masks', 'data/masks/val', 'data/masks/val/new', 'link'])
def test_predictions_do_not_go_into_the_data(tmp_path, out, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prefix = dict(img_path='images/val', seg_map_path='masks/val')
    loader = dict(dataset=dict(type='BaseSegDataset', data_root='data', data_prefix=prefix))
    (tmp_path / 'data/masks/val').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'data/masks/val')
    cfg = Config(dict(test_dataloader=loader))
    if out == 'data/masks':  # above it
        check_output_folder(cfg, out, '--out')
        return
    with pytest.raises(ConfigError, match=f'--out {out} lies in the data .test_dataloader'):
        check_output_folder(cfg, out, '--out')
