"""The command line: what it makes, what it prints, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cdra_mm.data import SOURCES, Split

from .archive_server import Behaviour, serve

pytest.importorskip('sklearn', reason='the demo data need scikit-learn')


def test_prepare_data_makes_and_checks_the_demo(repository: Path, run, tmp_path: Path) -> None:
    """As a user runs it, in a process of its own; then again, and with --check."""
    root = tmp_path / 'd'
    done = subprocess.run(
        [sys.executable, str(repository / 'tools/prepare_data.py'), 'demo', str(root)],
        env={**os.environ, 'PYTHONPATH': str(repository), 'OMP_NUM_THREADS': '1'},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, '')
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f'demo in {root}: ')
    assert lines[1].split() == 'training 240 of 240 images 240 of 240 labels'.split()
    assert lines[2].split() == 'validation 80 of 80 images 80 of 80 labels'.split()
    assert lines[3:] == ['complete']
    made = {p: p.stat().st_mtime_ns for p in root.rglob('*')}
    for extra in ([], ['--check']):
        assert run('demo', root, *extra) == (0, done.stdout, [])
    assert {p: p.stat().st_mtime_ns for p in root.rglob('*')} == made
    assert [p.name for p in tmp_path.iterdir()] == ['d']


@pytest.mark.parametrize('name', SOURCES)
def test_check_of_nothing_says_so_in_one_line(name: str, run, tmp_path: Path) -> None:
    code, _, errors = run(name, tmp_path / 'nowhere', '--check')
    assert code == 2
    assert len(errors) == 1
    assert errors[0].startswith(f'error: nothing of {name} is there ({tmp_path}')
    assert f'python tools/prepare_data.py {name} {tmp_path}' in errors[0]
    assert list(tmp_path.iterdir()) == []


WRONG = {
    'a name that is nearly right': (
        ['camvd', 'x'],
        "unknown data set 'camvd', did you mean 'camvid'?",
    ),
    'a name like none': (['zzz', 'x', '--check'], "'zzz' (known: demo, ade20k, voc, camvid)"),
    'no root': (['demo'], 'the following arguments are required: ROOT'),
    'nothing': ([], 'required: NAME, ROOT'),
    'an unknown option': (['demo', 'x', '--force'], 'unrecognized arguments: --force'),
    'an archive that is not there': (['camvid', 'x', '--archive', 'a.zip'], 'a.zip is not there'),
    'an archive for the demo': (['demo', 'x', '--archive', 'a.zip'], 'demo data are generated'),
    'both': (['voc', 'x', '--check', '--archive', 'a'], 'do not go together'),
}


@pytest.mark.parametrize('arguments, message', WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_one_line_and_writes_nothing(
    arguments: list[str], message: str, run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output, errors = run(*arguments)
    assert code == 2
    assert output == ''
    assert len(errors) == 1
    assert errors[0].startswith('error: ')
    assert message in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_data_set(run) -> None:
    code, output, errors = run('--help')
    assert (code, errors) == (0, [])
    assert all(name in output for name in SOURCES)


def test_root_that_is_a_file_is_one_line(run, tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('kept')
    for root in (tmp_path / 'file', tmp_path / 'file' / 'below'):
        code, _, errors = run('demo', root)
        assert code == 2
        assert len(errors) == 1 and 'cannot write to' in errors[0]
    assert (tmp_path / 'file').read_text() == 'kept'


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_root_that_cannot_be_written_is_one_line(run, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    code, _, errors = run('demo', tmp_path / 'demo')
    assert code == 2
    assert len(errors) == 1 and 'Permission denied' in errors[0]


def ade_zip(path: Path, training: int = 2) -> Path:
    with zipfile.ZipFile(path, 'w') as file:
        for split, count in (('training', training), ('validation', 2)):
            for i in range(count):
                file.writestr(f'ADEChallengeData2016/images/{split}/{i}.jpg', b'jpeg')
                file.writestr(f'ADEChallengeData2016/annotations/{split}/{i}.png', b'png')
    return path


def test_ade20k_is_downloaded_unpacked_and_its_archive_removed(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shrink, tree
) -> None:
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    content = ade_zip(tmp_path / 'a.zip').read_bytes()
    root = tmp_path / 'data' / 'ade'
    with serve(Behaviour(content)) as server:
        shrink('ade20k', url=server.url)
        code, _, errors = run('ade20k', root)
        assert (code, errors) == (0, [])
        # The second run has nothing to do.
        assert run('ade20k', root)[0] == 0
    assert len(server.ranges) == 1
    assert [p.name for p in root.iterdir()] == ['ADEChallengeData2016']
    assert len(tree(root)) == 8


def test_archive_that_lacks_images_is_not_installed(run, tmp_path: Path, shrink) -> None:
    shrink('ade20k')
    archive = ade_zip(tmp_path / 'a.zip', training=1)
    code, _, errors = run('ade20k', tmp_path / 'ade', '--archive', archive)
    assert code == 2
    assert errors == [
        f'error: {archive}: ade20k in this archive is not complete: '
        'training has 1 images, 1 labels, 1 of 2 pairs'
    ]
    assert [p.name for p in tmp_path.iterdir()] == ['a.zip']


def test_partial_data_set_is_never_overwritten(run, tmp_path: Path, shrink, tree) -> None:
    shrink('ade20k')
    mine = tmp_path / 'ade/ADEChallengeData2016/images/training/0.jpg'
    mine.parent.mkdir(parents=True)
    mine.write_text('mine')
    code, _, errors = run('ade20k', tmp_path / 'ade', '--archive', ade_zip(tmp_path / 'a.zip'))
    assert code == 2
    assert 'ADEChallengeData2016 exists' in errors[0] and 'move it away first' in errors[0]
    assert tree(tmp_path / 'ade') == ['ADEChallengeData2016/images/training/0.jpg']


@pytest.fixture
def voc(tmp_path: Path, shrink) -> Path:
    shrink('voc')
    base = tmp_path / 'VOCdevkit/VOC2012'
    for folder in ('JPEGImages', 'SegmentationClass', 'ImageSets/Segmentation'):
        (base / folder).mkdir(parents=True)
    for split in ('train', 'val'):
        (base / f'ImageSets/Segmentation/{split}.txt').write_text(f'{split}_0\n{split}_1\n')
        for i in range(2):
            (base / f'JPEGImages/{split}_{i}.jpg').write_text('jpeg')
            (base / f'SegmentationClass/{split}_{i}.png').write_text('png')
    (base / 'JPEGImages/of_another_task.jpg').write_text('jpeg')
    return tmp_path


def test_voc_counts_what_its_lists_name_and_explains_the_rest(voc: Path, run) -> None:
    code, output, errors = run('voc', voc, '--check')
    assert (code, errors) == (0, [])
    assert (
        'SegmentationClassAug' in output and 'SBD' in output and f'{voc}/VOCdevkit/VOCaug' in output
    )
    (voc / 'VOCdevkit/VOC2012/SegmentationClassAug').mkdir()
    assert 'SBD' not in run('voc', voc, '--check')[1]


@pytest.mark.parametrize('how', ['missing', 'empty'])
def test_voc_notices_one_label(how: str, voc: Path, run) -> None:
    label = voc / 'VOCdevkit/VOC2012/SegmentationClass/val_1.png'
    label.unlink()
    if how == 'empty':
        label.touch()
    code, _, errors = run('voc', voc, '--check')
    assert code == 2
    assert len(errors) == 1
    assert 'val has 2 images, 1 labels, 1 of 2 pairs' in errors[0]
    assert 'train has' not in errors[0]


def test_demo_record_that_is_damaged_is_named(run, tmp_path: Path) -> None:
    (tmp_path / 'demo.json').write_text('{"counts": {"training": 3')
    code, _, errors = run('demo', tmp_path, '--check')
    assert code == 2
    assert len(errors) == 1 and 'demo.json is damaged' in errors[0]


def test_every_source_says_where_it_comes_from() -> None:
    assert list(SOURCES) == ['demo', 'ade20k', 'voc', 'camvid']
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.splits and all(isinstance(split, Split) for split in source.splits)
        assert bool(source.url) == bool(source.archive) == bool(source.inside) == (name != 'demo')
        for split in source.splits:
            assert any(split.images.startswith(entry) for entry in source.entries)
