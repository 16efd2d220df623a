"""The method inside OpenMMLab: the only code that knows mmengine, mmseg and mmpretrain.

========================  ==================================================
`launch`, `inputs`        a config becomes a run; its inputs are looked for first
`packages`                ``package::`` names in configs
`hook`                    when what happens in a run
`scoring`                 the run's own data and loss as batches
`scoring_state`, `labels` the state of a run while it is scored; labels that fit
`plans`                   a plan from a file, and the same plan on every process
`rebuild`                 optimizer, schedulers, DDP, EMA after the model changed
`backbone`                the registered wrapper; loading adapted checkpoints
`backbones`               timm's transformers as dense backbones; DINOv2's multi-layer features
`checkpoint`, `slim_hook` slim checkpoints and their record
`base_weights`            where a frozen base came from, and how to bring it back
`merging`                 an adapted checkpoint becomes a plain one
`exports`                 and what else it can become: adapter file, LoRA of PEFT, ONNX
`peft_format`             compact blocks as a LoRA in PEFT's format
`onnx_export`             a merged model for onnxruntime
`report`, `summary`       what was planned, what it cost and gave
`datasets`, `heads`       data sets and heads that OpenMMLab lacks
`metrics`                 the bitwise figure of the paper's Table 3, which is no IoU
`weights`                 weights of other projects under OpenMMLab's names
`compatibility`           how checkpoint files are read: nothing in them is executed
========================  ==================================================
"""

try:
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        'cdra_mm.mm needs OpenMMLab (mmengine, mmcv, mmsegmentation, mmpretrain), which is not '
        'installed: pip install "cdra-mm[onedl]" (the maintained forks) or "cdra-mm[openmmlab]" '
        '(the original packages); one environment holds one of the two'
    ) from error

import warnings

from .compatibility import guard_checkpoints

# mmcv without compiled operators says so at every import; no backbone here uses them.
warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')
guard_checkpoints()
