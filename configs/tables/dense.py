"""Table 3 of the CDRA paper: DINOv2 ViT-B/14 with a linear head on ADE20K and VOC.

Command: python tools/tables.py dense
Data: CDRA_ADE20K_ROOT and CDRA_VOC_ROOT, see configs/_base_/datasets.
No search: both data sets publish validation labels only, and to choose by the images that are
    reported would be no result. Every method trains with the configs' settings.
Result: not yet measured. mDice and mIoU here are the standard accumulated ones; the figures that
    the paper prints (CDRA 74.0 / 62.0 and 77.4 / 66.4) come from another metric and are no target.
"""

_base_ = '../_base_/tables/methods.py'

title = 'Semantic segmentation, DINOv2 ViT-B/14 with a linear head'
metrics = dict(mDice='mDice', mIoU='mIoU')
seeds = [0]
means = False
methods = dict(
    # Its own loss needs a label for each image.
    gps=dict(method=dict(loss='task')),
    full=dict(options={'optim_wrapper.optimizer.lr': 3e-5}),
    noah=dict(method=dict(supernet_iters=10000)),  # 500 passes would be weeks
    spt_adapter=dict(method=dict(budget_percent=0.83)),
    spt_lora_8=dict(method=dict(budget_percent=0.83)),
    spt_lora_16=dict(method=dict(budget_percent=1.6)),
)
tasks = dict(
    ade20k=dict(title='ADE20K', config='../cdra/dinov2_ade20k.py', report='validation'),
    voc=dict(title='VOC', config='../cdra/dinov2_voc.py', report='validation'),
)
