"""Images below a folder, and the names of what is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.core import DataError
from cdra_mm.data.image_files import find_images, unique_names

STEMS = st.sampled_from(['a', 'A', 'b', 'a.jpg', 'a.jpg.png', 'sub/a'])
SUFFIXES = st.sampled_from(['.jpg', '.png', '.tif', '.JPG'])


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b'')


def test_images_are_found_in_all_folders_but_hidden_ones_and_the_output(tmp_path):
    touch(
        tmp_path, 'b.JPG', 'sub/deep/a.tiff', 'notes.txt', '.hidden/a.png', '._a.jpg', 'out/a.png'
    )
    found = find_images(tmp_path, without=tmp_path / 'sub/../out')
    assert found.names == (Path('b.JPG'), Path('sub/deep/a.tiff'))
    assert found.others == (Path('notes.txt'),)
    single = find_images(tmp_path / 'b.JPG')
    assert (single.root, single.names) == (tmp_path, (Path('b.JPG'),))


def test_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match='gone does not exist: expected an image or a folder'):
        find_images(tmp_path / 'gone')


@given(st.sets(st.tuples(STEMS, SUFFIXES).map(''.join), min_size=1))
def test_names_never_clash_and_stay_in_their_folders(names):
    paths = [Path(name) for name in names]
    if len({str(path).lower() for path in paths}) < len(paths):
        return  # such files cannot lie side by side where case does not count
    made = unique_names(paths, '.png')
    assert list(made) == paths
    assert len({str(new).lower() for new in made.values()}) == len(paths)
    for name, new in made.items():
        assert new.parent == name.parent and new.name.startswith(name.stem)
        assert new.suffix == '.png'
