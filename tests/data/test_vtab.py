"""VTAB-1k: the community archive's layout, some tasks only, and what can be wrong with lists."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cdra_mm.data import check, inspect_data, prepare
from cdra_mm.data.vtab import TASKS
from cdra_mm.errors import DataError

pytest.importorskip('PIL.Image')

COUNTS = {'train800': 3, 'val200': 2, 'train800val200': 5, 'test': 4}


def task_files(task: str, image: bytes) -> dict[str, bytes]:
    """A task as the archive holds it; train800val200 has copies of its own."""
    classes = TASKS.get(task, (10, 0))[0]
    files = {}
    for split, count in COUNTS.items():
        names = [f'images/{split}/{i:06d}.jpg' for i in range(count)]
        lines = [f'{name} {i % classes}\n' for i, name in enumerate(names)]
        files |= {f'{task}/{name}': image for name in names}
        files[f'{task}/{split}.txt'] = ''.join(lines).encode()
    return files


@pytest.fixture
def archive(tmp_path: Path, picture, shrink) -> Callable[..., Path]:
    """Makes the archive, with each file changed or left out as a test likes."""
    shrink('vtab', count=COUNTS)

    def make(top: str = 'vtab-1k/', tasks: tuple[str, ...] = tuple(TASKS), **changes) -> Path:
        path = tmp_path / 'vtab.zip'
        with zipfile.ZipFile(path, 'w') as file:
            file.writestr('__MACOSX/vtab-1k/._x', b'x')
            for task in tasks:
                for name, content in task_files(task, picture()).items():
                    file.writestr(top + name, content)
        return path

    return make


@pytest.mark.parametrize('top', ['', 'vtab-1k/', 'data/vtab-1k/'])
def test_vtab_is_prepared_wherever_its_archive_holds_the_tasks(
    top: str, archive, run, tmp_path: Path
) -> None:
    root = tmp_path / 'v'
    code, output, errors = run('vtab', root, '--archive', archive(top))
    assert (code, errors) == (0, [])
    assert output.splitlines()[-1] == 'complete'
    assert sorted(p.name for p in root.iterdir()) == sorted(TASKS)
    assert len(list((root / 'dtd/images').rglob('*.jpg'))) == sum(COUNTS.values())
    code, output, errors = run('vtab', root, '--check')
    assert (code, errors) == (0, [])
    line = '  test: 4 of 47 classes, 1 to 1 images each (median 1); without an image: 4, 5, 6'
    assert 'dtd:\n  train800: 3 of 47' in output and line in output


def test_vtab_archive_without_a_task_is_not_installed(archive, run, tmp_path: Path) -> None:
    path = archive(tasks=tuple(TASKS)[1:])
    code, _, errors = run('vtab', tmp_path / 'v', '--archive', path)
    assert code == 2 and len(errors) == 1
    assert errors[0].endswith('vtab in this archive is not complete: caltech101 not there')
    assert [p.name for p in tmp_path.iterdir()] == ['vtab.zip']


def test_vtab_archive_of_something_else_is_named(run, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
        file.writestr('a/b.txt', 'b')
    code, _, errors = run('vtab', tmp_path / 'v', '--archive', tmp_path / 'a.zip')
    assert code == 2 and 'holds no VTAB-1k task' in errors[0]
    assert [p.name for p in tmp_path.iterdir()] == ['a.zip']


def test_vtab_task_that_is_in_an_archive_twice_is_refused(archive, tmp_path: Path, picture) -> None:
    path = archive()
    with zipfile.ZipFile(path, 'a') as file:
        file.writestr('copy/dtd/train800.txt', b'x')
    with pytest.raises(DataError, match='holds the task dtd twice'):
        prepare('vtab', tmp_path / 'v', archive=path)


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def test_vtab_tasks_that_are_complete_stay_while_the_rest_is_added(
    archive, tmp_path: Path, picture
) -> None:
    root = tmp_path / 'v'
    mine = picture(value=(250, 0, 0))
    write(root, task_files('caltech101', mine))
    report = check('vtab', root)
    assert 'cifar, dtd, oxford_flowers102' in report.problem() and '13 more' in report.problem()
    assert prepare('vtab', root, archive=archive()).complete
    assert (root / 'caltech101/images/test/000000.jpg').read_bytes() == mine
    assert (root / 'kitti/test.txt').is_file()


def test_vtab_task_that_is_incomplete_is_never_overwritten(
    archive, tmp_path: Path, picture
) -> None:
    root = tmp_path / 'v'
    write(root, task_files('caltech101', picture()))
    (root / 'caltech101/images/test/000001.jpg').unlink()
    with pytest.raises(DataError, match=r'caltech101 exists, but .*000001.jpg is not there'):
        prepare('vtab', root, archive=archive())
    assert [p.name for p in root.iterdir()] == ['caltech101']


def test_vtab_folder_of_one_task_is_checked_alone(tmp_path: Path, picture) -> None:
    root = tmp_path / 'dtd'
    write(tmp_path, task_files('dtd', picture()))
    report = check('vtab', root)
    # Against the benchmark's own counts.
    assert 'train800 has 3 of 800 images' in report.problem()
    assert 'test has 4 of 1880 images' in report.problem()
    with pytest.raises(DataError, match='exists, but'):
        prepare('vtab', root, archive=tmp_path / 'any.zip')


DAMAGE = {
    'a line without a label': (
        'test.txt',
        lambda text: text + b'images/test/000000.jpg\n',
        'test.txt:5: expected "path label", got \'images/test/000000.jpg\'',
    ),
    'a label that is no number': (
        'val200.txt',
        lambda text: b'images/val200/000000.jpg one\n' + text,
        'val200.txt:1: expected "path label"',
    ),
    'an id out of range': (
        'train800.txt',
        lambda text: text.replace(b'000001.jpg 1', b'000001.jpg 47'),
        'train800.txt:2: label 47 is out of range for 47 classes (0 to 46)',
    ),
    'a path outside': (
        'test.txt',
        lambda text: text.replace(b'images/test/000002', b'../dtd/images/test/000002'),
        'test.txt:3: ../dtd/images/test/000002.jpg leaves the data folder',
    ),
    'a line twice': (
        'test.txt',
        lambda text: text + b'images/test/000000.jpg 0\n',
        'test.txt:5: images/test/000000.jpg is listed already at',
    ),
    'bytes that are no text': ('test.txt', lambda text: b'\xff' + text, 'is not UTF-8 text'),
    'an empty list': ('test.txt', lambda text: b'', 'test.txt is empty (0 bytes)'),
    'an empty image': ('images/test/000003.jpg', lambda old: b'', '000003.jpg is empty'),
    'half an image': (
        'images/val200/000001.jpg',
        lambda old: old[: len(old) // 2],
        '000001.jpg cannot be decoded',
    ),
}


@pytest.mark.parametrize('file, change, message', DAMAGE.values(), ids=DAMAGE.keys())
def test_check_of_vtab_names_what_is_damaged(
    file: str, change, message: str, archive, run, tmp_path: Path
) -> None:
    root = tmp_path / 'v'
    prepare('vtab', root, archive=archive())
    path = root / 'dtd' / file
    path.write_bytes(change(path.read_bytes()))
    code, output, errors = run('vtab', root, '--check')
    assert code == 2 and len(errors) == 1
    assert message in output and message in errors[0]
    assert output.count('cannot be decoded') == ('decoded' in message)


def test_check_of_vtab_copies_gives_the_right_picture(shared: Path, run) -> None:
    root = shared / 'data/vtab-1k'
    if not root.is_dir():
        pytest.skip(f'no VTAB-1k tasks at {root}')
    code, output, errors = run('vtab', root, '--check')
    assert code == 2 and len(errors) == 1
    # Two folders: one task whose test split is not the benchmark's, and one that is no task of it.
    assert '13 more not there; caltech101 test has 1020 of 6084 images' in errors[0]
    assert 'note: cifar10 is no VTAB-1k task' in output
    assert '  train800val200: 102 of 102 classes, 9 to 11 images each (median 10)' in output
    assert '  test: 10 of 10 classes, 300 to 300 images each (median 300)' in output
    assert ' wrong:' not in output


def test_check_of_a_copied_task_that_is_no_vtab_task_succeeds(shared: Path) -> None:
    root = shared / 'data/vtab-1k/cifar10'
    if not root.is_dir():
        pytest.skip(f'no {root}')
    inspection = inspect_data('vtab', root)
    assert inspection.good
    assert inspection.tallies['']['test'].images.total() == 3000
