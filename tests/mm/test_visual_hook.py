"""What the visualizer gets to see while a run trains."""

from __future__ import annotations

import math

import numpy as np
import pytest
from mmengine.registry import VISBACKENDS
from mmengine.visualization.vis_backend import BaseVisBackend
from PIL import Image

from cdra_mm.core import Plan, adapters, merge_adapters, resolve
from cdra_mm.core.planning.plan_positions import find_positions
from cdra_mm.mm import visual_hook
from cdra_mm.mm.adapter_growth import AdapterGrowth
from cdra_mm.mm.backbone import find_backbone
from cdra_mm.mm.rebuild import plain_model

from .toy import SIZE, config, picture, train


@VISBACKENDS.register_module(force=True)
class ScalarBackend(BaseVisBackend):
    """Remembers scalars; takes no images."""

    def __init__(self, save_dir):
        super().__init__(save_dir)
        self.scalars, self.images = [], {}

    experiment = property(lambda self: self)

    def _init_env(self):
        pass

    def add_scalars(self, scalar_dict, step=0, file_path=None, **kwargs):
        self.scalars.append((step, dict(scalar_dict)))


@VISBACKENDS.register_module(force=True)
class ImageBackend(ScalarBackend):
    """Remembers images too."""

    def add_image(self, name, image, step=0, **kwargs):
        self.images[name] = image


def run(folder, backend, **options):
    """A short run that looks at every iteration; the runner and its back end."""
    drawing, iterations = options.pop('drawing', None), options.pop('iterations', 2)
    cfg = config(folder, **options)
    cfg.default_hooks.logger.interval = 1
    cfg.train_cfg.max_iters = cfg.train_cfg.val_interval = iterations
    if drawing:
        cfg.default_hooks.visualization = drawing
    cfg.visualizer.vis_backends = [dict(type=backend)]
    cfg.visualizer.save_dir = str(folder)
    cfg.visualizer.name = folder.name
    runner = train(cfg)
    return runner, runner.visualizer.get_backend(backend)


def ours(backend, name):
    key = f'cdra/{name}'
    return {step: scalars[key] for step, scalars in backend.scalars if key in scalars}


def test_visual_hook_shows_plan_and_growth(tmp_path):
    runner, backend = run(tmp_path, 'ImageBackend')
    backbone = find_backbone(plain_model(runner))
    plan = Plan.from_json((tmp_path / 'run' / 'cdra_plan.json').read_text())
    assert plan.positions == find_positions(backbone)
    assert {'cdra_ranks', 'cdra_parameters'} <= backend.images.keys()
    image = backend.images['cdra_ranks']
    assert image.dtype == np.uint8 and image.shape[2] == 3 and len(np.unique(image)) > 20
    total = sum(p.numel() for n, p in backbone.named_parameters() if '.cdra.' not in f'.{n}')
    assert ours(backend, 'percent_of_backbone') == {0: 100 * plan.num_trainable / total}
    assert ours(backend, 'share_of_budget') == {0: plan.num_trainable / int(total * 0.05)}
    assert 0.8 < ours(backend, 'share_of_budget')[0] <= 1
    in_use = ours(backend, 'rank_in_use')
    assert list(in_use) == [1, 2] and all(0 < share <= 1 for share in in_use.values())
    assert_growth_is_that_of_the_weights(backbone, backend)


def assert_growth_is_that_of_the_weights(backbone, backend):
    """The relative changes at the last step against merged minus base weights."""
    changes = {}
    growth = AdapterGrowth(backbone)
    before = {name: growth.bases[name].clone() for name in growth.bases}
    roles = dict(growth.roles)
    norms = dict(growth.norms)
    names = list(adapters(backbone))
    merge_adapters(backbone)
    after = AdapterGrowth(backbone).bases
    for name in names:
        # Several parts share a weight: what others changed lies outside the part's rows.
        part = rows_of(backbone, name)
        difference = (after[name][part].double() - before[name][part].double()).norm()
        changes.setdefault(roles[name], []).append(float(difference) / norms[name])
    assert changes
    for role, values in changes.items():
        shown = ours(backend, f'relative_change/{role}')[2]
        assert math.isclose(shown, sum(values) / len(values), rel_tol=1e-4)


def rows_of(backbone, name):
    target = resolve(backbone, name)
    return slice(target.start, target.stop)


@pytest.mark.parametrize(
    ('method', 'scalar'),
    [('adapter', 'parameter_norm/bottleneck'), ('rlrr', 'relative_change/q')],
)
def test_visual_hook_suits_methods_without_low_rank_blocks(tmp_path, monkeypatch, method, scalar):
    """A back end that takes no images: nothing is drawn for it."""
    monkeypatch.setattr(visual_hook, 'draw_map', None)
    _, backend = run(tmp_path, 'ScalarBackend', iterations=1, cdra=dict(method=dict(type=method)))
    assert ours(backend, 'rank_in_use') == {}
    assert list(ours(backend, 'percent_of_backbone')) == [0]
    assert list(ours(backend, scalar)) == [1] and ours(backend, scalar)[1] > 0


def test_visual_hook_can_be_switched_off(tmp_path):
    _, backend = run(tmp_path, 'ImageBackend', iterations=1, cdra=dict(visualize=False))
    assert backend.images == {} and backend.scalars
    assert not [name for _, scalars in backend.scalars for name in scalars if name[:5] == 'cdra/']


def test_tensorboard_gets_plan_and_growth(tmp_path):
    """The real back end, read back from its own file."""
    pytest.importorskip('tensorboard', reason='tensorboard is not installed')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, backend = run(tmp_path, 'TensorboardVisBackend')
    backend.close()
    (file,) = tmp_path.rglob('events.out.tfevents*')
    events = EventAccumulator(str(file))
    events.Reload()
    assert {'cdra_ranks', 'cdra_parameters'} <= set(events.Tags()['images'])
    assert [event.step for event in events.Scalars('cdra/rank_in_use')] == [1, 2]


def test_predictions_of_mmseg_come_through_the_same_back_end(tmp_path, monkeypatch):
    """mmseg's own hook draws what the adapted model predicts; nothing of ours is in the way."""
    for i in range(8):
        Image.fromarray(picture(i)[0]).save(tmp_path / f'toy_{i}.png')
    monkeypatch.chdir(tmp_path)  # the toy data set names its images without a folder
    drawing = dict(type='SegVisualizationHook', draw=True, interval=1)
    _, backend = run(tmp_path, 'ImageBackend', drawing=drawing, iterations=1)
    drawn = [name for name in backend.images if name.startswith('val_')]
    assert drawn and backend.images[drawn[0]].shape[0] == SIZE
