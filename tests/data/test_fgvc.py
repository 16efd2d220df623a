"""The fine-grained sets: from each publisher's archives to JSON lists that point at images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('scipy', reason='three publishers have MATLAB lists')
pytest.importorskip('PIL.Image')

from cdra_mm.data import SOURCES, check, prepare  # noqa: E402
from cdra_mm.data.fgvc import hold_out  # noqa: E402
from cdra_mm.errors import DataError

from .archive_server import Behaviour, serve  # noqa: E402
from .publishers import CLASSES, PUBLISHERS, TEST, TRAIN, birds, mat, tar  # noqa: E402

COUNTS = {'train': TRAIN - 1, 'val': 1, 'test': TEST}


@pytest.fixture(params=PUBLISHERS)
def name(request: pytest.FixtureRequest, shrink) -> str:
    shrink(request.param, count=COUNTS, num_classes=CLASSES)
    return request.param


@pytest.fixture
def cub(shrink) -> None:
    shrink('cub', count=COUNTS, num_classes=CLASSES)


@pytest.fixture
def packed(tmp_path: Path, picture) -> Any:
    """Writes a data set's archives into a folder."""

    def pack(name: str) -> Path:
        folder = tmp_path / 'packed'
        folder.mkdir()
        PUBLISHERS[name](folder, picture())
        return folder

    return pack


def entry(name: str, root: Path) -> Path:
    return root / SOURCES[name].entries[0]


def lists(folder: Path) -> dict[str, dict[str, int]]:
    return {path.stem: json.loads(path.read_text()) for path in folder.glob('*.json')}


def test_fgvc_set_is_converted_from_its_archives(name: str, packed, run, tmp_path: Path) -> None:
    root = tmp_path / 'fgvc'
    folder = packed(name)
    before = {path.name for path in folder.iterdir()}
    code, output, errors = run(name, root, '--archive', folder)
    assert (code, errors) == (0, [])
    assert output.splitlines()[-1] == 'complete'
    assert [path.name for path in root.iterdir()] == [SOURCES[name].entries[0]]
    made = lists(entry(name, root))
    assert {split: len(content) for split, content in made.items()} == COUNTS
    # Zero-based without holes, and every image is where the list says.
    assert {label for content in made.values() for label in content.values()} == set(range(CLASSES))
    roots = SOURCES[name].splits[0].image_roots
    for content in made.values():
        assert all((entry(name, root) / roots[0] / path).is_file() for path in content)
    assert {path.name for path in folder.iterdir()} == before
    code, output, errors = run(name, root, '--check')
    assert (code, errors) == (0, [])
    assert output.splitlines()[-1] == 'complete'


def test_fgvc_labels_are_those_of_the_publisher(name: str, packed, tmp_path: Path) -> None:
    """The generated archives give the image at position i of its split the class i modulo 3."""
    prepare(name, tmp_path / 'fgvc', archive=packed(name))
    made = lists(entry(name, tmp_path / 'fgvc'))
    first = {'stanford_cars': 1, 'oxford_flowers': 1}.get(name, 0)
    offset = 0
    for content in made.values():
        for path, label in content.items():
            number = int(path.rpartition('.')[0].rpartition('_')[2].rpartition('/')[2])
            assert label == (number - first + offset) % CLASSES


def test_fgvc_files_are_downloaded_and_removed(
    packed, run, tmp_path: Path, shrink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    files = {path.name: path.read_bytes() for path in packed('oxford_flowers').iterdir()}
    root = tmp_path / 'fgvc'
    with serve(Behaviour(b'', files=files)) as server:
        shrink('oxford_flowers', count=COUNTS, num_classes=CLASSES, address=server.url)
        assert run('oxford_flowers', root)[0] == 0
    assert len(server.ranges) == 3
    assert [path.name for path in root.iterdir()] == ['OxfordFlowers']


@pytest.mark.parametrize('name', ['nabirds', 'stanford_cars'])
def test_fgvc_set_without_an_address_says_where_it_comes_from(
    name: str, run, tmp_path: Path
) -> None:
    code, _, errors = run(name, tmp_path / 'fgvc')
    assert code == 2 and len(errors) == 1
    assert f'{name} cannot be fetched by this program: ' in errors[0]
    assert 'https://' in errors[0] and 'with --archive' in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_set_of_several_files_takes_their_folder(packed, run, tmp_path: Path) -> None:
    folder = packed('stanford_cars')
    code, _, errors = run('stanford_cars', tmp_path / 'f', '--archive', folder / 'cars_test.tgz')
    assert code == 2 and 'comes in 4 files' in errors[0] and 'takes the folder' in errors[0]
    (folder / 'cars_test.tgz').unlink()
    code, _, errors = run('stanford_cars', tmp_path / 'f', '--archive', folder)
    assert code == 2 and f'{folder} lacks cars_test.tgz' in errors[0]
    assert not (tmp_path / 'f').exists()


def test_held_out_images_are_the_same_every_time_and_disjoint() -> None:
    train = {f'{i}.jpg': i % 7 for i in range(200)}
    cut = hold_out(train)
    assert len(cut['val']) == 20 and cut['train'] | cut['val'] == train
    assert not set(cut['train']) & set(cut['val'])
    assert hold_out(dict(reversed(train.items()))) == cut
    # Not simply the first or the last ones.
    assert len({int(path[:-4]) // 50 for path in cut['val']}) == 4


def own_lists(names: list[str]) -> dict[str, dict[str, int]]:
    """Another author's cut of the tiny CUB, with ids of his own."""
    paths = [(name, 10 + i % CLASSES) for i, name in enumerate(names)]
    return {
        'train': dict(paths[: TRAIN - 3]),
        'val': dict(paths[TRAIN - 3 : TRAIN]),
        'test': dict(paths[TRAIN:]),
    }


@pytest.mark.parametrize('place', ['beside the archive', 'in the folder'])
def test_lists_of_other_authors_are_kept(place: str, cub, packed, run, tmp_path: Path) -> None:
    folder, root = packed('cub'), tmp_path / 'fgvc'
    names = [f'{1 + 7 * (i % CLASSES):03d}.A_bird/bird_{i}.jpg' for i in range(TRAIN + TEST)]
    target = folder if place == 'beside the archive' else entry('cub', root)
    target.mkdir(parents=True, exist_ok=True)
    for split, content in own_lists(names).items():
        (target / f'{split}.json').write_text(json.dumps(content))
    written = {path: path.stat().st_ino for path in target.glob('*.json')}
    # Only the sum of train and val is published: 7 and 3 are as good as 9 and 1.
    assert run('cub', root, '--archive', folder) == run('cub', root)
    assert lists(entry('cub', root)) == own_lists(names)
    assert {path: path.stat().st_ino for path in target.glob('*.json')} == written
    assert (entry('cub', root) / 'images.txt').is_file()
    assert run('cub', root, '--check')[0] == 0


def test_a_part_of_other_lists_is_refused(cub, packed, run, tmp_path: Path) -> None:
    folder, root = packed('cub'), tmp_path / 'fgvc'
    entry('cub', root).mkdir(parents=True)
    (entry('cub', root) / 'val.json').write_text('{}')
    code, _, errors = run('cub', root, '--archive', folder)
    assert code == 2 and 'val.json without the rest' in errors[0]
    assert [path.name for path in entry('cub', root).iterdir()] == ['val.json']


def test_folder_with_anything_else_is_never_touched(cub, packed, run, tmp_path: Path) -> None:
    root = tmp_path / 'fgvc'
    entry('cub', root).mkdir(parents=True)
    (entry('cub', root) / 'mine').write_text('kept')
    code, _, errors = run('cub', root, '--archive', packed('cub'))
    assert code == 2 and 'move it away first' in errors[0]
    assert [path.name for path in entry('cub', root).iterdir()] == ['mine']


BROKEN = {
    'an image without a class': (
        lambda files: files.update({'CUB_200_2011/image_class_labels.txt': b'id-0 1\n'}),
        'image id-1 of images.txt has no class or no split',
    ),
    'a line of one column': (
        lambda files: files.update({'CUB_200_2011/train_test_split.txt': b'id-0 1\nid-1\n'}),
        'train_test_split.txt:2: expected two columns',
    ),
    'a missing list': (
        lambda files: files.pop('CUB_200_2011/images.txt'),
        'the archive lacks images.txt',
    ),
    'an image outside': (
        lambda files: files.update(
            {
                'CUB_200_2011/images.txt': files['CUB_200_2011/images.txt'].replace(
                    b'001.A_bird/bird_0.jpg', b'../../../etc/passwd'
                )
            }
        ),
        '../../../etc/passwd leaves the data folder',
    ),
    'a missing image': (
        lambda files: files.pop('CUB_200_2011/images/001.A_bird/bird_0.jpg'),
        '001.A_bird/bird_0.jpg is not there',
    ),
}


@pytest.mark.parametrize('change, message', BROKEN.values(), ids=BROKEN.keys())
def test_archive_of_birds_that_is_wrong_leaves_nothing(
    change, message: str, cub, run, tmp_path: Path, picture
) -> None:
    files = birds('CUB_200_2011', picture(), 1)
    change(files)
    tar(tmp_path / 'a.tgz', files)
    code, _, errors = run('cub', tmp_path / 'fgvc', '--archive', tmp_path / 'a.tgz')
    assert code == 2 and len(errors) == 1 and message in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ['a.tgz']


@pytest.mark.parametrize(
    'content, message',
    [(b'nothing', 'is no MATLAB file'), (mat(other=[1]), 'imagelabels.mat lacks labels')],
)
def test_matlab_file_that_is_wrong_is_named(
    content: bytes, message: str, packed, run, tmp_path: Path
) -> None:
    folder = packed('oxford_flowers')
    (folder / 'imagelabels.mat').write_bytes(content)
    code, _, errors = run('oxford_flowers', tmp_path / 'fgvc', '--archive', folder)
    assert code == 2 and len(errors) == 1 and message in errors[0]
    assert not (tmp_path / 'fgvc').exists()


def test_matlab_lists_name_the_package_they_need(
    packed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, 'scipy.io', None)
    for archive in (packed('oxford_flowers'), None):  # None: found before the download
        with pytest.raises(DataError, match='needs scipy: pip install scipy'):
            prepare('oxford_flowers', tmp_path / 'fgvc', archive=archive)


DAMAGE = {
    'an image in two splits': (
        'val.json',
        lambda text: text.replace(
            '{',
            '{"001.A_bird/bird_12.jpg": 0, ',  # a test image
        ),
        'bird_12.jpg is in val and in test',
    ),
    'a class too many': (
        'val.json',
        lambda text: text.replace(': ', ': 9'),
        'CUB_200_2011 has 4 different class ids in its lists, expected 3',
    ),
    'a class that is no number': (
        'test.json',
        lambda text: text.replace(': 1', ': "one"'),
        "must be an integer, got 'one'",
    ),
    'an image twice': (
        'test.json',
        lambda text: text.replace('{', '{"001.A_bird/bird_12.jpg": 0, '),
        '001.A_bird/bird_12.jpg is listed already at',
    ),
    'no JSON': ('train.json', lambda text: text[:-5], 'malformed JSON in column'),
    'a list': ('train.json', lambda text: '[1]', 'its content is a list; expected one flat object'),
}


@pytest.mark.parametrize('file, change, message', DAMAGE.values(), ids=DAMAGE.keys())
def test_check_of_fgvc_names_what_is_damaged(
    file: str, change, message: str, cub, packed, run, tmp_path: Path
) -> None:
    root = tmp_path / 'fgvc'
    prepare('cub', root, archive=packed('cub'))
    path = entry('cub', root) / file
    path.write_text(change(path.read_text()))
    code, output, errors = run('cub', root, '--check')
    assert code == 2 and len(errors) == 1
    assert message in output


def test_images_of_dogs_may_lie_in_the_root(packed, shrink, tmp_path: Path) -> None:
    shrink('stanford_dogs', count=COUNTS, num_classes=CLASSES)
    root = tmp_path / 'fgvc'
    prepare('stanford_dogs', root, archive=packed('stanford_dogs'))
    folder = entry('stanford_dogs', root)
    for path in (folder / 'Images').iterdir():
        shutil.move(path, folder)
    (folder / 'Images').rmdir()
    assert check('stanford_dogs', root).complete
