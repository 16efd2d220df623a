"""The method inside OpenMMLab: the only code that knows mmengine, mmseg and mmpretrain.

============================  ==================================================
`launch`, `inputs`,           a config becomes a run; its inputs are looked for first
`dataset_configs`
`data_check`                  files, labels and sizes of a run's data, looked at beforehand
`packages`                    ``package::`` names in configs
`hook`, `hook_settings`,      when what happens in a run: how its backbone is adapted, what it
`adaptation`, `run_results`   leaves at its end
`planning`                the run's own data becomes its plan
`rebuild`, `recompute`        optimizer, schedulers, DDP, EMA, activation checkpointing
                              after the model changed
`backbone`                    the registered wrapper; loading adapted checkpoints
`backbones`                   timm's transformers as dense backbones; DINOv2's multi-layer features
`checkpoints`                 slim checkpoints, saved safely and resumed exactly
`compatibility`, `guards`     how checkpoint files are read: nothing in them is executed
`host`                        every private name of OpenMMLab that is used, every patch of it
`cached_files`                files of addresses, checked before they are kept
`export`                      merged checkpoints, adapter files, LoRA of PEFT, ONNX
`painting`                    painted predictions of a test run
`parallel`                    several processes
`training_watch`,             whether what is planned is trained, at a rate that suits the weights,
`rate_watch`, `divergence`    and whether it stays finite
`plan_description`, `summary` what was planned, what it cost and gave
`visual_hook`,                the plan and how the adapters grow, through the run's visualizer
`adapter_growth`
`datasets`, `heads`           data sets and heads that OpenMMLab lacks
`metrics`                     the bitwise figure of the paper's Table 3, which is no IoU
`weights`                     weights of other projects under OpenMMLab's names
============================  ==================================================
"""

try:
    import mmengine  # noqa: F401
except ImportError as error:
    raise ImportError(
        'cdra_mm.mm needs OpenMMLab (mmengine, mmcv, mmsegmentation, mmpretrain), which is not '
        'installed: pip install "cdra-mm[onedl]" (the maintained forks) or "cdra-mm[openmmlab]" '
        '(the original packages); one environment holds one of the two'
    ) from error
