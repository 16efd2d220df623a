"""Files that are damaged or foreign, disks that do not take them, runs that are interrupted."""

from __future__ import annotations

import fcntl
import io
import json
import os
import subprocess
import tarfile
import zipfile
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from cdra_mm import CDRAHook
from cdra_mm.command_line import run
from cdra_mm.core import (
    CheckpointError,
    ConfigError,
    DataError,
    ScoreError,
    adapters,
    apply_plan,
    base_state,
    digests_of,
    estimate_scores,
    load_adapter,
    save_adapter,
)
from cdra_mm.data.unpack import DamagedArchiveError, unpack
from cdra_mm.mm.checkpoints.base_source import BaseSource
from cdra_mm.mm.checkpoints.record import Record
from cdra_mm.mm.checkpoints.restoring import ensure_base
from cdra_mm.mm.export.destination import check_destination, is_merged
from cdra_mm.mm.inputs import check_weight_file, refuse_foreign_weights
from cdra_mm.mm.launch import set_work_dir
from cdra_mm.mm.summary import update_summary
from cdra_mm.mm.work_lock import LOCK, hold_work_dir
from tests.models import TinyViT, images, losses

from .case import heading
from .settings import plan


def adapter_file(folder, change=lambda content: content, change_base=lambda base: None, **options):
    """A damaged adapter file, loaded, or one loaded into another base."""
    path = folder / 'adapter.safetensors'
    base = TinyViT()
    state = {key: value.clone() for key, value in base.state_dict().items()}
    adapted = TinyViT()
    adapted.load_state_dict(state)
    save_adapter(apply_plan(adapted, plan()), path)
    path.write_bytes(change(path.read_bytes()))
    change_base(base)
    try:
        load_adapter(base, path, **options)
    finally:
        assert not adapters(base)


@contextmanager
def small_disk(folder, options):
    """A file system of its own; the test is skipped where none can be mounted."""
    place = folder / 'disk'
    place.mkdir()
    words = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(place)]
    if os.name != 'posix' or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip('no right to mount a small file system')
    try:
        (place / 'adapter.safetensors').write_text('old')
        if options:
            subprocess.run(['mount', '-o', f'remount,{options}', str(place)], check=True)
        yield place
        assert (place / 'adapter.safetensors').read_text() == 'old'
        assert os.listdir(place) == ['adapter.safetensors']
    finally:
        subprocess.run(['umount', str(place)], check=True)


def write_to(folder, options):
    with small_disk(folder, options) as place:
        adapted = apply_plan(TinyViT(dim=64, hidden=256), plan_of_bytes(100_000))
        save = lambda: save_adapter(adapted, place / 'adapter.safetensors')  # noqa: E731
        if options:
            save()
        else:
            with pytest.raises(CheckpointError) as caught:
                save()
            error = caught.value
    if not options:
        raise error


def plan_of_bytes(size):
    """A plan whose values need about that many bytes."""
    from cdra_mm.core import plan_from_masks

    mask = torch.ones(64, 64, dtype=torch.bool)
    rank = 32
    names = [f'blocks.{i}.attn.qkv.weight:{part}' for i in range(2) for part in 'qkv']
    assert len(names) * 2 * rank * 64 * 4 > size * 0.9
    return plan_from_masks(dict.fromkeys(names, mask), rank_rule=rank)


with heading('Checkpoints and adapter files') as (refused, taken):

    @refused('weights that are not there', CheckpointError, 'does not exist: put it there')
    def _(folder):
        check_weight_file(str(folder / 'base.pth'))

    @refused('a checkpoint that is cut off', CheckpointError, 'is cut off or damaged')
    def _(folder):
        torch.save({'state_dict': {'w': torch.ones(1000)}}, folder / 'cut.pth')
        content = (folder / 'cut.pth').read_bytes()
        (folder / 'cut.pth').write_bytes(content[: len(content) // 2])
        check_weight_file(str(folder / 'cut.pth'))

    @refused('a file that is no checkpoint', CheckpointError, 'base.pth')
    def _(folder):
        (folder / 'base.pth').write_text('<html>please log in</html>')
        check_weight_file(str(folder / 'base.pth'))

    @refused('a checkpoint of another model', CheckpointError, 'holds no weight of this TinyViT')
    def _(folder):
        model = TinyViT()
        refuse_foreign_weights(model)
        model.load_state_dict({'layer1.weight': torch.ones(3)}, strict=False)

    @refused(
        '`--resume` from a run without the method',
        CheckpointError,
        'was not written by a run with CDRAHook',
    )
    def _(folder):
        hook = CDRAHook()
        hook._configs = {'optim_wrapper': {}}
        model = SimpleNamespace(backbone=TinyViT())
        hook.after_load_checkpoint(SimpleNamespace(_resume=True, model=model), {'state_dict': {}})

    @refused(
        'an adapter file that is cut off', CheckpointError, 'is truncated or no safetensors file'
    )
    def _(folder):
        adapter_file(folder, lambda content: content[:-9])

    @refused(
        'an adapter file with a flipped bit',
        CheckpointError,
        'its values or its plan are not those',
    )
    def _(folder):
        adapter_file(folder, lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])

    @refused('a file of another program', CheckpointError, 'is no adapter of cdra_mm')
    def _(folder):
        from safetensors.torch import save

        adapter_file(folder, lambda content: save({'w': torch.ones(3)}))

    @refused(
        'an adapter file for a model with another patch embedding',
        CheckpointError,
        'was trained on other base weights: 2 tensors differ: patch_embed.bias, patch_embed.weight '
        '(float32 8x3x2x2 here, float32 8x3x4x4 there)',
    )
    def _(folder):
        def change(base):
            base.patch_embed = torch.nn.Conv2d(3, 8, 2, 2)

        adapter_file(folder, change_base=change)

    @refused(
        'a name that may differ, misspelt', CheckpointError, 'has a weight or buffer patch_embde'
    )
    def _(folder):
        adapter_file(folder, may_differ=['patch_embde'])

    @refused(
        'a checkpoint whose base is an address that the config does not name',
        CheckpointError,
        'and an address in a file is followed only where the config names it too',
    )
    def _(folder):
        base = BaseSource('init_cfg', 'http://127.0.0.1:9/base.pth')
        table = digests_of(base_state(TinyViT()))
        ensure_base(TinyViT(), Record(method='cdra', base=base, digests=table))

    @refused('base weights that are not finite', ScoreError, 'holds values that are not finite')
    def _(folder):
        model = TinyViT()
        model.blocks[0].attn.qkv.weight.data[0, 0] = float('nan')
        estimate_scores(model, [images(2)], losses)

    @refused('a work directory that cannot be made', ConfigError, 'cannot be made')
    def _(folder):
        (folder / 'file').touch()
        set_work_dir(Config(), 'x.py', str(folder / 'file' / 'work'))

    @refused('a work directory in which another process trains', ConfigError, 'is in use: another')
    def _(folder):
        with (folder / LOCK).open('w') as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            hold_work_dir(folder)

    @refused('`--force` over the checkpoint that is read', CheckpointError, 'name another one to')
    def _(folder):
        (folder / 'iter_2.pth').write_text('a')
        check_destination(folder / 'iter_2.pth', [('the checkpoint', f'{folder}/iter_2.pth')])

    @refused('`--force` over a file of another kind', CheckpointError, 'is no merged checkpoint')
    def _(folder):
        (folder / 'notes').write_text('a')
        kind = dict(what='merged checkpoint', is_own=is_merged)
        check_destination(folder / 'notes', [], force=True, **kind)

    @refused('a device as the file to write', CheckpointError, 'is no file, and a file is to be')
    def _(folder):
        check_destination(Path(os.devnull), [], force=True)

    @taken(
        'a summary.json that is damaged',
        'it is kept as `summary.json.damaged`, with a warning, and a new one is begun',
    )
    def _(folder):
        (folder / 'summary.json').write_text('{"method": ')
        update_summary(folder, {'mIoU': float('nan')})
        assert (folder / 'summary.json.damaged').read_text() == '{"method": '
        assert json.loads((folder / 'summary.json').read_text()) == {'mIoU': None}

    @refused('a full disk', CheckpointError, 'nothing was changed')
    def _(folder):
        write_to(folder, '')

    @refused('a disk that can only be read', CheckpointError, 'nothing was changed')
    def _(folder):
        write_to(folder, 'ro')

    @taken(
        'Ctrl-C in the scoring pass',
        'the tools end with one line, `interrupted: ...`, which says how to go on, and exit code '
        '130; the model is as it was and no file is half written',
    )
    def _(folder):
        model = TinyViT().train()
        before = {key: value.clone() for key, value in model.state_dict().items()}

        def interrupted(*_):
            raise KeyboardInterrupt('while scoring')

        with pytest.raises(SystemExit) as caught, redirect_stderr(io.StringIO()) as said:
            run(lambda: estimate_scores(model, [images(2)], interrupted))
        assert caught.value.code == 130
        assert said.getvalue() == 'interrupted: while scoring\n'
        assert model.training and not adapters(model) and not os.listdir(folder)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def archive(folder, *names, link='', size=0, kept=0):
    """An archive with these members, unpacked: so many files, or nothing."""
    with tarfile.open(folder / 'a.tar.gz', 'w:gz') as file:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = size
            info.type, info.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, '')
            file.addfile(info, io.BytesIO(bytes(size)))
    try:
        assert unpack(folder / 'a.tar.gz', folder / 'out') == kept
    finally:
        assert sorted(os.listdir(folder)) == ['a.tar.gz', *(['out'] if kept else [])]


with heading('Archives') as (refused, taken):

    @refused(
        'a member with `..`, an absolute path or a drive',
        DataError,
        'would be written outside the folder',
    )
    def _(folder):
        archive(folder, '../../evil')

    @refused(
        'a link (hard or symbolic), a device, a pipe', DataError, 'is a link or a special file'
    )
    def _(folder):
        archive(folder, 'link', link='/etc/passwd')

    @refused('two members of one name', DataError, 'cannot unpack')
    def _(folder):
        archive(folder, 'a', './a')

    @taken(
        'two names that differ in case only',
        'both are unpacked; refused, with nothing left behind, on a disk that takes them for one',
    )
    def _(folder):
        archive(folder, 'a.jpg', 'A.jpg', kept=2)

    @refused(
        'an archive that grows more than 100 times, beyond 1 GiB',
        DamagedArchiveError,
        'no set of images does',
    )
    def _(folder):
        with zipfile.ZipFile(folder / 'a.zip', 'w') as file:
            file.writestr('zeros', b'0')
        content = (folder / 'a.zip').read_bytes()
        at = content.rindex(b'PK\x01\x02') + 24  # the length that the directory states
        (folder / 'a.zip').write_bytes(
            content[:at] + (3 << 30).to_bytes(4, 'little') + content[at + 4 :]
        )
        unpack(folder / 'a.zip', folder / 'out')

    @refused('no archive', DamagedArchiveError, 'is neither a zip nor a tar archive')
    def _(folder):
        (folder / 'a.zip').write_text('<html>please log in</html>')
        unpack(folder / 'a.zip', folder / 'out')
