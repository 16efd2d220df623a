"""The text of schedule, hooks and environment of a new config."""

from __future__ import annotations

from typing import Any

from .code import statement
from .content import ConfigContent

__all__ = ['run_text']

FULL_WARMUP = 1500
PARTS_OF_RUN = 8  # validations and checkpoints in a run
SHORTEST_PART = 250  # steps between them


def run_text(content: ConfigContent) -> str:
    """How the model is trained, and what is as in every run."""
    steps = content.iterations
    every = max(steps // PARTS_OF_RUN, min(steps, SHORTEST_PART))
    warmup = max(1, min(FULL_WARMUP, steps // 10))
    wrapper: dict[str, Any] = {
        'type': 'OptimWrapper',
        'optimizer': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 1e-4},
    }
    slower = content.model.backbone_rate
    if slower != 1.0:
        wrapper['paramwise_cfg'] = {'custom_keys': {'backbone': {'lr_mult': slower}}}
    scored = min(400, sum(source.count for source in content.splits['train']))
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
            'budget_percent': content.budget_percent,
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
        f'{content.budget_percent:g} % of the',
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
        f'randomness = dict(seed={content.seed})',
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
