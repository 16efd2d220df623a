"""The generated data: laid out as promised, repeatable, and without leaks between the splits."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('sklearn', reason='the demo data need scikit-learn')
np = pytest.importorskip('numpy')
Image = pytest.importorskip('PIL.Image')

from cdra_mm.data import check, make_demo  # noqa: E402
from cdra_mm.data import demo_images as demo_module  # noqa: E402
from cdra_mm.data.demo_images import CLASSES, MIN_VISIBLE, PALETTE  # noqa: E402
from cdra_mm.errors import DataError  # noqa: E402

SPLITS = {'training': 24, 'validation': 12}


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('made') / 'deep' / 'demo'
    return make_demo(folder, num_training=24, num_validation=12)


@pytest.fixture(scope='module')
def record(root: Path) -> dict[str, Any]:
    return json.loads((root / 'demo.json').read_text())


def masks(root: Path, split: str) -> list[Any]:
    return [
        np.asarray(Image.open(path))
        for path in sorted((root / 'annotations' / split).glob('*.png'))
    ]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_demo_holds_what_its_layout_promises(root: Path) -> None:
    expected = {'demo.json'}
    for split, count in SPLITS.items():
        for number in range(count):
            expected.add(f'images/{split}/{number:04d}.jpg')
            expected.add(f'annotations/{split}/{number:04d}.png')
    assert set(contents(root)) == expected
    assert [path.name for path in root.parent.iterdir()] == ['demo']
    report = check('demo', root)
    assert report.complete
    assert {s.split.name: s.found for s in report.states} == SPLITS


@pytest.mark.parametrize('split', SPLITS)
def test_demo_images_and_masks_have_one_size_and_known_classes(root: Path, split: str) -> None:
    for path in (root / 'images' / split).glob('*.jpg'):
        with Image.open(path) as image:
            assert (image.mode, image.size) == ('RGB', (64, 64))
    for path in (root / 'annotations' / split).glob('*.png'):
        with Image.open(path) as mask:
            assert (mask.mode, mask.size) == ('L', (64, 64))
            assert mask.getextrema()[1] < len(CLASSES)


@pytest.mark.parametrize('split', SPLITS)
def test_demo_every_class_is_in_every_split(root: Path, split: str) -> None:
    present = set(np.unique(masks(root, split)).tolist())
    assert present == set(range(len(CLASSES))) == set(range(len(PALETTE)))


def test_demo_masks_hold_the_digits_of_the_record(root: Path, record: dict[str, Any]) -> None:
    for split in SPLITS:
        for number, mask in enumerate(masks(root, split)):
            digits = record['images'][f'{split}/{number:04d}']['digits']
            assert 2 <= len(digits) <= 5
            assert set(np.unique(mask).tolist()) == {0, *(d['class'] for d in digits)}
            assert 0.02 < (mask > 0).mean() < 0.5


def test_demo_splits_share_no_handwritten_sample(record: dict[str, Any]) -> None:
    used = {
        split: {d['sample'] for name, i in images_of(record, split) for d in i['digits']}
        for split in SPLITS
    }
    assert used['training'] and used['validation']
    assert not used['training'] & used['validation']


def test_demo_splits_share_no_pixel_of_a_photograph(record: dict[str, Any]) -> None:
    pairs = list(product(images_of(record, 'training'), images_of(record, 'validation')))
    same_photo = [(a['box'], b['box']) for (_, a), (_, b) in pairs if a['photo'] == b['photo']]
    assert same_photo
    for a, b in same_photo:
        apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
        assert apart, f'{a} and {b} overlap'


def images_of(record: dict[str, Any], split: str) -> list[tuple[str, dict[str, Any]]]:
    return [(k, v) for k, v in record['images'].items() if k.startswith(f'{split}/')]


def test_demo_samples_are_of_the_class_that_the_mask_says(record: dict[str, Any]) -> None:
    from sklearn.datasets import load_digits

    target = load_digits().target
    for image in record['images'].values():
        assert all(target[d['sample']] + 1 == d['class'] for d in image['digits'])


def test_demo_is_the_same_for_a_seed_and_another_for_another(root: Path, tmp_path: Path) -> None:
    again = make_demo(tmp_path / 'again', num_training=24, num_validation=12)
    other = make_demo(tmp_path / 'other', num_training=24, num_validation=12, seed=1)
    assert contents(again) == contents(root)
    differing = [n for n, c in contents(other).items() if contents(root)[n] != c]
    assert len(differing) == len(contents(root))
    boxes = [
        [image['box'] for image in json.loads((made / 'demo.json').read_text())['images'].values()]
        for made in (root, other)
    ]
    assert not any(a == b for a, b in zip(*boxes, strict=True))


def test_demo_validation_does_not_depend_on_how_many_train(root: Path, tmp_path: Path) -> None:
    more = make_demo(tmp_path / 'more', num_training=3, num_validation=12)
    for kind in ('images', 'annotations'):
        assert contents(more / kind / 'validation') == contents(root / kind / 'validation')


def test_demo_classes_are_balanced(record: dict[str, Any]) -> None:
    counts = np.zeros(len(CLASSES), dtype=int)
    for _, image in images_of(record, 'training'):
        for digit in image['digits']:
            counts[digit['class']] += 1
    assert counts[1:].max() - counts[1:].min() <= 2


def test_demo_digits_stay_visible_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen in the owner map itself: areas when laid against areas at the end."""
    shapes: list[list[Any]] = [[]]
    find = demo_module._Painter._find_place

    def remember(self: Any, shape: Any, owner: Any, areas: list[int]) -> Any:
        place = find(self, shape, owner, areas)
        if not areas:
            shapes.append([])
        if place is not None:
            shapes[-1].append((place, shape))
        return place

    monkeypatch.setattr(demo_module._Painter, '_find_place', remember)
    make_demo(tmp_path / 'demo', num_training=20, num_validation=1)
    assert len(shapes) == 22
    for digits in shapes[1:]:
        owner = np.zeros((64, 64), dtype=int)
        for index, ((y, x), shape) in enumerate(digits, 1):
            assert 14 <= shape.shape[0] <= 28
            owner[y : y + shape.shape[0], x : x + shape.shape[1]][shape] = index
        for index, (_, shape) in enumerate(digits, 1):
            assert (owner == index).sum() >= MIN_VISIBLE * shape.sum()


def test_demo_grows_with_the_size(tmp_path: Path) -> None:
    root = make_demo(tmp_path / 'demo', num_training=2, num_validation=1, size=112)
    assert masks(root, 'training')[0].shape == (112, 112)


@pytest.mark.parametrize('entry', ['images', 'annotations', 'demo.json'])
def test_demo_never_overwrites(entry: str, tmp_path: Path) -> None:
    (tmp_path / entry).mkdir()
    (tmp_path / entry / 'mine').write_text('kept')
    with pytest.raises(DataError, match=f'{entry} exists and would be overwritten'):
        make_demo(tmp_path, num_training=1, num_validation=1)
    assert contents(tmp_path) == {f'{entry}/mine': b'kept'}


@pytest.mark.parametrize(
    'wrong', [{'num_training': 0}, {'num_validation': -1}, {'size': 31}, {'seed': -1}]
)
def test_demo_refuses_what_cannot_be_drawn(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(DataError, match='demo data need at least'):
        make_demo(tmp_path / 'demo', **wrong)
    assert list(tmp_path.iterdir()) == []


def test_demo_leaves_nothing_behind_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any) -> Any:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(demo_module._Painter, 'paint', fail)
    with pytest.raises(DataError, match='No space left'):
        make_demo(tmp_path / 'a' / 'demo', num_training=1, num_validation=1)
    assert list(tmp_path.iterdir()) == []


def test_demo_names_the_package_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, 'sklearn.datasets', None)
    with pytest.raises(DataError, match='needs scikit-learn: pip install scikit-learn'):
        make_demo(tmp_path / 'demo')
