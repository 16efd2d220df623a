"""CDRA of DINOv2 ViT-B/14 with a linear head on ADE20K.

Command: python tools/train.py configs/cdra/dinov2_ade20k.py (one GPU, 16 images a step; on N GPUs
    add --cfg-options train_dataloader.batch_size=<16 / N>)
Data: CDRA_ADE20K_ROOT, see configs/_base_/datasets/ade20k.py.
Memory: 16 to 20 GB in fp32, estimated from the bytes saved for the backward pass (with no adapters,
    with the widest); not measured.
Result: not yet measured. The frozen backbone with this head is published at 47.3 mIoU (DINOv2,
    linear head), which CDRA should pass. The paper's 62.0 mIoU / 74.0 mDice (Table 3, 0.82 percent
    of the parameters) come from another metric than mIoU and are no target.
"""

_base_ = [
    '../_base_/models/dinov2_base_linear.py',
    '../_base_/datasets/ade20k_518.py',
    '../_base_/recipes/cdra_ade20k.py',
]
