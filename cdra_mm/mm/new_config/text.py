"""The text of a new config: everything in one file, so that it is read from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cdra_mm.data.own.labels import Meaning
from cdra_mm.pictures.style import class_palette

from .code import Code, statement
from .models import ModelPart

__all__ = ['Facts', 'Source', 'config_text', 'scale_of']

FULL_WARMUP = 1500
PARTS_OF_RUN = 8  # validations and checkpoints in a run
SHORTEST_PART = 250  # steps between them
SLIDE = 2 / 3  # of a window between two windows
LONG_SIDE = 4  # short sides that a long side may have


@dataclass(frozen=True)
class Source:
    """Images and masks of one split whose names end alike.

    Attributes:
        images: Folder below ``images`` of the config, '' for itself.
        masks: Folder below ``masks``, likewise.
        image_suffix: See `cdra_mm.data.own.pairing.Pair`.
        mask_suffix: Likewise.
        listed: Name of the list of its names, '' where it is all that lies in the folders.
        count: How many pairs.
    """

    images: str
    masks: str
    image_suffix: str
    mask_suffix: str
    listed: str
    count: int


@dataclass(frozen=True)
class Facts:
    """What goes into a config.

    Attributes:
        title: First line of its docstring.
        command: The command line that writes it.
        config: Its own path, for the commands in its docstring.
        images: Folder of the images.
        masks: Folder of the masks.
        lists: Name of the folder of lists beside it.
        splits: The sources of ``train``, ``val`` and ``test``.
        meaning: What the masks mean.
        model: The model without its classes.
        crop: Side of the crops in pixels.
        short_side: Short side that images are brought to.
        batch_size: Images a step.
        iterations: Steps.
        budget_percent: Share of the backbone that is trained.
        seed: Of the run.
        workers: Processes that load images.
        remarks: Lines about the data, for a comment.
    """

    title: str
    command: str
    config: str
    images: str
    masks: str
    lists: str
    splits: dict[str, Sequence[Source]]
    meaning: Meaning
    model: ModelPart
    crop: int
    short_side: int
    batch_size: int
    iterations: int
    budget_percent: float
    seed: int
    workers: int
    remarks: Sequence[str] = ()


def scale_of(short_side: int) -> tuple[int, int]:
    """The largest size of an image that is brought to a short side, as mmseg writes it."""
    return (LONG_SIDE * short_side, short_side)


def config_text(facts: Facts) -> str:
    """The config as Python text."""
    return '\n'.join([_head(facts), _data(facts), _loaders(facts), _model(facts), _run(facts)])


def _head(facts: Facts) -> str:
    weights = facts.model.download
    lines = [
        f'"""{facts.title}',
        '',
        f'Written by: {facts.command}',
        f'Check:      python tools/prepare_data.py --config {facts.config} --check',
        f'Train:      python tools/train.py {facts.config}',
        f'Test:       python tools/test.py {facts.config} CHECKPOINT',
        f'Predict:    python tools/predict.py {facts.config} CHECKPOINT IMAGES --out DIR',
        f'Weights:    {f"downloaded on the first run, from {weights}" if weights else "see model"}',
        '"""',
        '',
    ]
    return '\n'.join(lines).replace('\\', '/')


def _data(facts: Facts) -> str:
    meaning, crop = facts.meaning, facts.crop
    palette = meaning.palette or class_palette(len(meaning.classes))
    metainfo = {'classes': meaning.classes, 'palette': [list(colour) for colour in palette]}
    image, load = {'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations'}
    scale, pack = Code('scale'), {'type': 'PackSegInputs'}
    cropped = {'crop_size': Code('crop_size'), 'cat_max_ratio': 0.75}
    train = [
        image,
        load,
        {'type': 'RandomResize', 'scale': scale, 'ratio_range': (0.5, 2.0), 'keep_ratio': True},
        {'type': 'RandomCrop', **cropped, 'ignore_index': Code('ignore_index')},
        {'type': 'RandomFlip', 'prob': 0.5},
        {'type': 'PhotoMetricDistortion'},
        pack,
    ]
    resize = {'type': 'Resize', 'scale': scale, 'keep_ratio': True}
    flips = [{'type': 'RandomFlip', 'prob': p, 'direction': 'horizontal'} for p in (0.0, 1.0)]
    views = {'type': 'TestTimeAug', 'transforms': [flips, [load], [pack]]}
    zero = meaning.reduce_zero_label
    lines = [
        '# Data. The masks hold one class id a pixel; what is ignored counts neither in the loss',
        '# nor in the figures.',
        *(f'# {remark}' for remark in facts.remarks),
        statement('images', facts.images),
        statement('masks', facts.masks),
        # mmengine puts the folder of the config in.
        *([statement('lists', '{{fileDirname}}/' + facts.lists)] if _listed(facts) else []),
        statement('metainfo', metainfo),
        statement('ignore_index', meaning.ignore_index),
        *(['# 0 is ignored, and the classes begin at 1.'] if zero else []),
        statement('reduce_zero_label', zero),
        '',
        f'# Crops of {crop} pixels to train on. Short sides are brought to {facts.short_side} '
        'pixels first,',
        '# in training times a factor between 0.5 and 2.',
        statement('crop_size', (crop, crop)),
        statement('scale', scale_of(facts.short_side)),
        statement('train_pipeline', train),
        '# The labels are read after Resize: they keep their own size, and so do the predictions.',
        statement('test_pipeline', [image, resize, load, pack]),
        '# For test.py --tta: each image and its mirror image.',
        statement('tta_pipeline', [image, resize, views]),
        "tta_model = dict(type='SegTTAModel')",
        '',
    ]
    return '\n'.join(lines)


def _listed(facts: Facts) -> bool:
    return any(source.listed for sources in facts.splits.values() for source in sources)


def _loaders(facts: Facts) -> str:
    lines = []
    for split, sources in facts.splits.items():
        train = split == 'train'
        pipeline = Code('train_pipeline' if train else 'test_pipeline')
        parts = [_dataset(source, pipeline) for source in sources]
        dataset = parts[0] if len(parts) == 1 else {'type': 'ConcatDataset', 'datasets': parts}
        loader = {
            'batch_size': facts.batch_size if train else 1,
            'num_workers': facts.workers,
            'persistent_workers': facts.workers > 0,
            'sampler': {
                'type': 'InfiniteSampler' if train else 'DefaultSampler',
                'shuffle': train,
            },
            'dataset': dataset,
        }
        lines += [
            f'# {sum(source.count for source in sources)} images.',
            statement(f'{split}_dataloader', loader),
        ]
    if 'test' not in facts.splits:
        lines += ['# There is no test split: testing repeats the validation.']
        lines += ['test_dataloader = val_dataloader']
    metric = {
        'type': 'IoUMetric',
        'iou_metrics': ['mIoU', 'mDice'],
        'ignore_index': Code('ignore_index'),
    }
    lines += [statement('val_evaluator', metric), 'test_evaluator = val_evaluator', '']
    return '\n'.join(lines)


def _dataset(source: Source, pipeline: Code) -> dict[str, Any]:
    def below(root: str, folder: str) -> Code:
        return Code(f'{root} + {"/" + folder!r}' if folder else root)

    listed = {'ann_file': Code(f'lists + {"/" + source.listed!r}')} if source.listed else {}
    return {
        'type': 'BaseSegDataset',
        'data_prefix': {
            'img_path': below('images', source.images),
            'seg_map_path': below('masks', source.masks),
        },
        'img_suffix': source.image_suffix,
        'seg_map_suffix': source.mask_suffix,
        **listed,
        'metainfo': Code('metainfo'),
        'ignore_index': Code('ignore_index'),
        'reduce_zero_label': Code('reduce_zero_label'),
        'pipeline': pipeline,
    }


def _model(facts: Facts) -> str:
    model: dict[str, Any] = {**facts.model.model}
    model['data_preprocessor'] = model['data_preprocessor'] | {
        'size': Code('crop_size'),
        'seg_pad_val': Code('ignore_index'),
    }
    for head in ('decode_head', 'auxiliary_head'):
        if head in model:
            model[head] = model[head] | {
                'num_classes': len(facts.meaning.classes),
                'ignore_index': Code('ignore_index'),
            }
    step = max(1, int(SLIDE * facts.crop))
    model['test_cfg'] = {'mode': 'slide', 'crop_size': Code('crop_size'), 'stride': (step, step)}
    # In the order in which an image goes through it.
    order = ('type', 'data_preprocessor', 'backbone', 'neck', 'decode_head', 'auxiliary_head')
    first = {key: _type_first(model.pop(key)) for key in order if key in model}
    lines = [
        f'# Model: {facts.model.name}.',
        '# Testing goes over an image in windows of the size of a crop.',
        statement('model', first | model),
        '',
    ]
    return '\n'.join(lines)


def _type_first(value: Any) -> Any:
    if not isinstance(value, dict) or 'type' not in value:
        return value
    return {'type': value['type'], **value}


def _run(facts: Facts) -> str:
    steps = facts.iterations
    every = max(steps // PARTS_OF_RUN, min(steps, SHORTEST_PART))
    warmup = max(1, min(FULL_WARMUP, steps // 10))
    wrapper: dict[str, Any] = {
        'type': 'OptimWrapper',
        'optimizer': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 1e-4},
    }
    slower = facts.model.backbone_rate
    if slower != 1.0:
        wrapper['paramwise_cfg'] = {'custom_keys': {'backbone': {'lr_mult': slower}}}
    scored = min(400, sum(source.count for source in facts.splits['train']))
    hooks = {
        'timer': {'type': 'IterTimerHook'},
        'logger': {'type': 'LoggerHook', 'interval': min(50, every), 'log_metric_by_epoch': False},
        'param_scheduler': {'type': 'ParamSchedulerHook'},
        'checkpoint': {
            'type': 'CheckpointHook',
            'by_epoch': False,
            'interval': every,
            'max_keep_ckpts': 1,
            'save_best': 'mIoU',
        },
        'sampler_seed': {'type': 'DistSamplerSeedHook'},
        'visualization': {'type': 'SegVisualizationHook'},
        'cdra': {
            'type': 'cdra_mm.CDRAHook',
            'method': {'type': 'cdra'},
            'budget_percent': facts.budget_percent,
            'num_samples': scored,
        },
    }
    lines = [
        '# Schedule: a short warm-up, then a cosine to zero over the whole run.',
        *(
            [
                f"# The backbone learns at {slower:g} of the head's rate: some weights forget at "
                'the whole of it.'
            ]
            if slower != 1.0
            else []
        ),
        statement('optim_wrapper', wrapper),
        'param_scheduler = [',
        f"    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end={warmup}),",
        "    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=0),",
        ']',
        f"train_cfg = dict(type='IterBasedTrainLoop', max_iters={steps}, val_interval={every})",
        "val_cfg = dict(type='ValLoop')",
        "test_cfg = dict(type='TestLoop')",
        '',
        f'# CDRA: before the first step {scored} training images are scored, then '
        f'{facts.budget_percent:g} % of the',
        '# backbone and the head are trained. Without its entry here the whole model is trained.',
        statement('default_hooks', hooks),
        '',
        '# The rest is as in every run.',
        "default_scope = 'mmseg'",
        "custom_imports = dict(imports=['cdra_mm.mm.weights'], allow_failed_imports=False)",
        'env_cfg = dict(',
        '    cudnn_benchmark=True,',
        "    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),",
        "    dist_cfg=dict(backend='nccl'),",
        ')',
        f'randomness = dict(seed={facts.seed})',
        'visualizer = dict(',
        "    type='SegLocalVisualizer',",
        "    vis_backends=[dict(type='LocalVisBackend')],",
        "    name='visualizer',",
        ')',
        'log_processor = dict(by_epoch=False)',
        "log_level = 'INFO'",
        'load_from = None',
        'resume = False',
        '',
    ]
    return '\n'.join(lines)
