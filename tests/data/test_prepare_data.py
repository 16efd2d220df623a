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
    assert run('demo', root) == (0, done.stdout, [])
    code, output, errors = run('demo', root, '--check')
    assert (code, output.splitlines()[:3], errors) == (0, lines[:3], [])
    assert output.splitlines()[4].split() == ['class', 'training', 'validation']
    assert output.splitlines()[-1] == 'complete'
    assert {p: p.stat().st_mtime_ns for p in root.rglob('*')} == made
    assert [p.name for p in tmp_path.iterdir()] == ['d']


@pytest.mark.parametrize('name', SOURCES)
def test_check_of_nothing_says_so_in_one_line(name: str, run, tmp_path: Path) -> None:
    code, _, errors = run(name, tmp_path / 'nowhere', '--check')
    assert code == 2
    assert len(errors) == 1
    assert errors[0].startswith(f'error: nothing of {name} is there ({tmp_path}')
    assert f'cdra data prepare {name} {tmp_path}' in errors[0]
    assert list(tmp_path.iterdir()) == []


WRONG = {
    'a name that is nearly right': (
        ['camvd', 'x'],
        "unknown data set 'camvd' (did you mean 'camvid'?)",
    ),
    'a name like none': (
        ['zzz', 'x', '--check'],
        "'zzz': expected one of demo, ade20k, voc, camvid, vtab, cub",
    ),
    'no root': (['demo'], 'expected NAME and ROOT, or --config CONFIG --check'),
    'nothing': ([], 'expected NAME and ROOT'),
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
        shrink('ade20k', address=server.url)
        code, _, errors = run('ade20k', root)
        assert (code, errors) == (0, [])
        # The second run has nothing to do.
        assert run('ade20k', root)[0] == 0
    assert len(server.ranges) == 1
    assert [p.name for p in root.iterdir()] == ['ADEChallengeData2016']
    assert len(tree(root)) == 8


def test_archive_that_lies_in_the_folder_is_used_and_stays(
    run, tmp_path: Path, shrink, tree
) -> None:
    shrink('ade20k', address='http://127.0.0.1:9')  # nobody answers there
    root = tmp_path / 'ade'
    root.mkdir()
    mine = ade_zip(root / SOURCES['ade20k'].files[0].name)
    content = mine.read_bytes()
    assert run('ade20k', root)[0] == 0
    assert len(tree(root)) == 9
    assert mine.read_bytes() == content


def test_damaged_archive_that_lies_in_the_folder_stays(run, tmp_path: Path, shrink) -> None:
    shrink('ade20k', address='http://127.0.0.1:9')
    mine = tmp_path / SOURCES['ade20k'].files[0].name
    mine.write_text('half of it')
    code, _, errors = run('ade20k', tmp_path)
    assert code == 2 and len(errors) == 1
    assert (
        f'{mine} is neither a zip nor a tar archive; move it away to have it fetched' in errors[0]
    )
    assert mine.read_text() == 'half of it'


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


def test_demo_record_that_is_damaged_is_named(run, tmp_path: Path) -> None:
    (tmp_path / 'demo.json').write_text('{"counts": {"training": 3')
    code, _, errors = run('demo', tmp_path, '--check')
    assert code == 2
    assert len(errors) == 1 and 'demo.json is damaged' in errors[0]


def test_every_source_says_where_it_comes_from() -> None:
    assert list(SOURCES) == [
        *('demo', 'ade20k', 'voc', 'camvid', 'vtab'),
        *('cub', 'nabirds', 'oxford_flowers', 'stanford_dogs', 'stanford_cars'),
    ]
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.splits and all(isinstance(split, Split) for split in source.splits)
        assert bool(source.files) == (name != 'demo')
        # A program fetches all of the files, or says where they come from.
        assert all(file.url for file in source.files) != bool(source.by_hand)
        for file in source.files:
            algorithm, _, digest = (file.checksum or 'none:').partition(':')
            assert len(digest) == {'none': 0, 'md5': 32, 'sha1': 40, 'sha256': 64}[algorithm]
        # The splits of a part stand together, and every part is an entry.
        parts = [split.part for split in source.splits]
        assert len(set(parts)) == sum(
            a != b for a, b in zip(parts, ['no part', *parts[:-1]], strict=True)
        )
        assert set(parts) <= {'', *source.entries}


def test_published_counts_are_those_of_the_papers() -> None:
    vtab = SOURCES['vtab'].splits
    assert len({split.part for split in vtab}) == 19
    assert sum(split.count for split in vtab if split.name == 'train800val200') == 19_000
    # As Visual Prompt Tuning counts them: training images with those held out, test images.
    fgvc = {
        'cub': (5994, 5794),
        'nabirds': (23929, 24633),
        'oxford_flowers': (2040, 6149),
        'stanford_dogs': (12000, 8580),
        'stanford_cars': (8144, 8041),
    }
    for name, (train, test) in fgvc.items():
        counts = [split.count for split in SOURCES[name].splits]
        assert (sum(counts[:2]), counts[2]) == (train, test)
