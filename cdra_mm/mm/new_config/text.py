"""The text of a new config: everything in one file, so that it is read from anywhere."""

from __future__ import annotations

from typing import Any

from cdra_mm.command_line import command
from cdra_mm.pictures.style import class_palette

from .code import Code, statement
from .content import ConfigContent, SplitFiles
from .run_text import run_text

__all__ = ['config_text', 'scale_of']

SLIDE = 2 / 3  # of a window between two windows
LONG_SIDE = 4  # short sides that a long side may have


def scale_of(short_side: int) -> tuple[int, int]:
    """The largest size of an image that is brought to a short side, as mmseg writes it."""
    return (LONG_SIDE * short_side, short_side)


def config_text(content: ConfigContent) -> str:
    """The config as Python text."""
    return '\n'.join(
        [_head(content), _data(content), _loaders(content), _model(content), run_text(content)]
    )


def _head(content: ConfigContent) -> str:
    weights = content.model.download
    predict = command('predict', content.config, 'CHECKPOINT', 'IMAGES')
    lines = [
        f'"""{content.title}',
        '',
        f'Written by: {content.command}',
        f'Check:      {command("data check", content.config)}',
        f'Train:      {command("train", content.config)}',
        f'Test:       {command("test", content.config, "CHECKPOINT")}',
        f'Predict:    {predict} --out DIR',
        f'Weights:    {f"downloaded on the first run, from {weights}" if weights else "see model"}',
        '"""',
        '',
    ]
    return '\n'.join(lines).replace('\\', '/')


def _data(content: ConfigContent) -> str:
    meaning, crop = content.meaning, content.crop
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
        *(f'# {remark}' for remark in content.remarks),
        statement('images', content.images),
        statement('masks', content.masks),
        # mmengine puts the folder of the config in.
        *([statement('lists', '{{fileDirname}}/' + content.lists)] if _listed(content) else []),
        statement('metainfo', metainfo),
        statement('ignore_index', meaning.ignore_index),
        *(['# 0 is ignored, and the classes begin at 1.'] if zero else []),
        statement('reduce_zero_label', zero),
        '',
        f'# Crops of {crop} pixels to train on. Short sides are brought to {content.short_side} '
        'pixels first,',
        '# in training times a factor between 0.5 and 2.',
        statement('crop_size', (crop, crop)),
        statement('scale', scale_of(content.short_side)),
        statement('train_pipeline', train),
        '# The labels are read after Resize: they keep their own size, and so do the predictions.',
        statement('test_pipeline', [image, resize, load, pack]),
        '# For test.py --tta: each image and its mirror image.',
        statement('tta_pipeline', [image, resize, views]),
        "tta_model = dict(type='SegTTAModel')",
        '',
    ]
    return '\n'.join(lines)


def _listed(content: ConfigContent) -> bool:
    return any(source.listed for sources in content.splits.values() for source in sources)


def _loaders(content: ConfigContent) -> str:
    lines = []
    for split, sources in content.splits.items():
        train = split == 'train'
        pipeline = Code('train_pipeline' if train else 'test_pipeline')
        parts = [_dataset(source, pipeline) for source in sources]
        dataset = parts[0] if len(parts) == 1 else {'type': 'ConcatDataset', 'datasets': parts}
        loader = {
            'batch_size': content.batch_size if train else 1,
            'num_workers': content.workers,
            'persistent_workers': content.workers > 0,
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
    if 'test' not in content.splits:
        lines += ['# There is no test split: testing repeats the validation.']
        lines += ['test_dataloader = val_dataloader']
    metric = {
        'type': 'IoUMetric',
        'iou_metrics': ['mIoU', 'mDice'],
        'ignore_index': Code('ignore_index'),
    }
    lines += [statement('val_evaluator', metric), 'test_evaluator = val_evaluator', '']
    return '\n'.join(lines)


def _dataset(source: SplitFiles, pipeline: Code) -> dict[str, Any]:
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


def _model(content: ConfigContent) -> str:
    model: dict[str, Any] = {**content.model.model}
    model['data_preprocessor'] = model['data_preprocessor'] | {
        'size': Code('crop_size'),
        'seg_pad_val': Code('ignore_index'),
    }
    for head in ('decode_head', 'auxiliary_head'):
        if head in model:
            model[head] = model[head] | {
                'num_classes': len(content.meaning.classes),
                'ignore_index': Code('ignore_index'),
            }
    step = max(1, int(SLIDE * content.crop))
    model['test_cfg'] = {'mode': 'slide', 'crop_size': Code('crop_size'), 'stride': (step, step)}
    # In the order in which an image goes through it.
    order = ('type', 'data_preprocessor', 'backbone', 'neck', 'decode_head', 'auxiliary_head')
    first = {key: _type_first(model.pop(key)) for key in order if key in model}
    lines = [
        f'# Model: {content.model.name}.',
        '# Testing goes over an image in windows of the size of a crop.',
        statement('model', first | model),
        '',
    ]
    return '\n'.join(lines)


def _type_first(value: Any) -> Any:
    if not isinstance(value, dict) or 'type' not in value:
        return value
    return {'type': value['type'], **value}
