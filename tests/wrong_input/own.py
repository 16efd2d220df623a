"""Folders of a user's own, for `cdra new` and `cdra predict`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from mmengine.config import Config

from cdra_mm.core import ConfigError, DataError
from cdra_mm.data.image_files import unique_names
from cdra_mm.data.own.labels import interpret
from cdra_mm.data.own.looking import Seen, look_at
from cdra_mm.data.own.pairing import find_pairs
from cdra_mm.data.own.splitting import groups_by, split_by_share
from cdra_mm.mm.new_config import NewConfigOptions, new_config
from cdra_mm.mm.new_config.models import find_model
from cdra_mm.mm.prediction import predict_folder
from cdra_mm.mm.test_time import set_test_time_augmentation
from tests.data.own.folders import labels, save, write_pair
from tests.mm import toy  # noqa: F401  registers OpenMMLab's packages

from .case import heading


def seen(folder: Path, *masks) -> Seen:
    """Looks at masks of these pixels."""
    found, pairs = Seen(), []
    for number, pixels in enumerate(masks):
        image = save(folder / f'i{number}.png', np.zeros((*pixels.shape[:2], 3), np.uint8))
        pairs.append((image, save(folder / f'm{number}.png', pixels)))
    for look in look_at(pairs, len(pairs), lambda done, total: None):
        found.add(look)
    return found


def grey(*values):
    return labels(0, values).astype(np.uint8)


def config(folder: Path, **options):
    """Writes a config for four pairs in the folder."""
    values = options.pop('values', (0, 1))
    for index, name in enumerate('abcd'):
        write_pair(folder, name, index, values=values)
    wanted = dict(images=folder / 'images', masks=folder / 'masks', out=folder / 'a.py') | options
    new_config(NewConfigOptions(**wanted), tell=lambda line: None)


def segmentor(**changes) -> Config:
    model = dict(type='mmseg.EncoderDecoder', backbone=dict(type='mmseg.BEiT'))
    return Config(dict(default_scope='mmseg', model=model) | changes)


def predict(folder: Path, out: str = 'out', cfg: Config | None = None, **options) -> None:
    cfg = cfg or segmentor()
    predict_folder(cfg, 'no.pth', folder / 'images', folder / out, **options)


with heading('Your own images and masks') as (refused, taken):

    @refused(
        '`new_config.py` with a folder that is not there',
        DataError,
        'is no folder: expected the folder of the images',
    )
    def _(folder):
        find_pairs(folder / 'images', folder / 'masks')

    @refused('images and masks that share no name', DataError, 'both bear the same name, or one')
    def _(folder):
        save(folder / 'i/a.png', grey(0))
        save(folder / 'm/b.png', grey(0))
        find_pairs(folder / 'i', folder / 'm')

    @refused(
        'two images with one mask',
        DataError,
        'have one name: say which to take with --image-suffix',
    )
    def _(folder):
        for name in ('i/a.png', 'i/a.bmp', 'm/a.png'):
            save(folder / name, grey(0))
        find_pairs(folder / 'i', folder / 'm')

    @refused('images and masks in one folder', DataError, 'say how their names end with')
    def _(folder):
        find_pairs(folder, folder)

    @taken('an image without a mask, given to new_config', 'it is named and left out')
    def _(folder):
        for name in ('i/a.png', 'i/b.png', 'm/a.png'):
            save(folder / name, grey(0))
        (part,) = find_pairs(folder / 'i', folder / 'm').parts
        assert part.lone_images == (Path('b.png'),)

    @refused(
        'a mask of another size than its image', DataError, 'is 5 x 5 pixels, but its image a.jpg'
    )
    def _(folder):
        write_pair(folder, 'a')
        save(folder / 'masks/a.png', np.zeros((5, 5), np.uint8))
        write_pair(folder, 'b')
        config_of = NewConfigOptions(folder / 'images', folder / 'masks', folder / 'a.py')
        new_config(config_of, tell=lambda line: None)

    @refused(
        'masks of 0 and 255, without a folder for converted ones',
        DataError,
        'the masks hold 0 and 255: OpenMMLab reads one class id a pixel',
    )
    def _(folder):
        config(folder, values=(0, 255))

    @refused('masks with one value', DataError, 'expected two classes at least')
    def _(folder):
        interpret(seen(folder, grey(0)))

    @refused(
        'masks of colours and masks of numbers together', DataError, 'some masks hold colours and'
    )
    def _(folder):
        colours = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)[labels(0, (0, 1))]
        interpret(seen(folder, grey(0, 1), colours))

    @refused('fewer names of classes than values', ConfigError, 'gives 1 names, and the masks hold')
    def _(folder):
        interpret(seen(folder, grey(0, 1)), ['a'])

    @refused('a value that is no class and not ignored', ConfigError, 'hold 7, which is neither a')
    def _(folder):
        interpret(seen(folder, grey(0, 1, 7)), ['a=0', 'b=1'])

    @refused('an unknown backbone', ConfigError, "did you mean 'dinov2-base'?")
    def _(folder):
        find_model('dinov2_base', 'linear', '')

    @refused('an unknown head', ConfigError, "did you mean 'upernet'?")
    def _(folder):
        find_model('dinov2-base', 'upnet', '')

    @refused('a config that exists', ConfigError, 'exists: name another config, or replace it with')
    def _(folder):
        (folder / 'a.py').write_text('')
        config(folder)

    @refused('a config in a folder that is not there', ConfigError, 'make it first')
    def _(folder):
        config(folder, out=folder / 'no/a.py')

    @refused('a folder for new masks among the masks', DataError, 'name a new folder beside it')
    def _(folder):
        config(folder, convert=folder / 'masks/new')

    @refused('groups of which there is one alone', ConfigError, 'are one group')
    def _(folder):
        split_by_share(groups_by(['a_1', 'a_2'], '^a'), 0.2, 0)


with heading('Predictions') as (refused, taken):

    @refused('`predict.py` with a folder without images', DataError, 'no image below')
    def _(folder):
        (folder / 'images').mkdir()
        predict(folder)

    @refused('predictions over files that exist', DataError, 'or replace them with --force')
    def _(folder):
        save(folder / 'images/a.png', grey(0))
        save(folder / 'out/masks/a.png', grey(0))
        predict(folder)

    @refused(
        'predictions over the images themselves, even with `--force`',
        DataError,
        'is one of the images and would be overwritten',
    )
    def _(folder):
        (folder / 'masks').mkdir()
        save(folder / 'masks/a.png', grey(0))
        predict_folder(segmentor(), 'no.pth', folder / 'masks', folder, force=True)

    @refused(
        'a config of another task', ConfigError, 'expected a segmentor of mmseg or a classifier'
    )
    def _(folder):
        predict(folder, cfg=segmentor(model=dict(type='mmengine.ImgDataPreprocessor')))

    @taken('`a.jpg` and `a.png` in one folder', 'their masks are `a.jpg.png` and `a.png.png`')
    def _(folder):
        made = unique_names([Path('a.jpg'), Path('a.png')], '.png')
        assert [str(name) for name in made.values()] == ['a.jpg.png', 'a.png.png']

    @refused('`test.py --tta` without test data', ConfigError, 'leave it out, or give the config')
    def _(folder):
        set_test_time_augmentation(segmentor())
