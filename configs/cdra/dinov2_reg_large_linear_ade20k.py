"""CDRA of DINOv2 ViT-L/14 with registers and a linear head on ADE20K.

Command: python tools/train.py configs/cdra/dinov2_reg_large_linear_ade20k.py (one GPU, 16 images a
    step; on N GPUs add --cfg-options train_dataloader.batch_size=<16 / N>)
Data: CDRA_ADE20K_ROOT, see configs/_base_/datasets/ade20k.py.
Memory: 31 to 41 GB in fp32, estimated from the bytes saved for the backward pass (with no adapters,
    with the widest); not measured.
Result: not yet measured.
"""

_base_ = [
    '../_base_/models/dinov2_reg_large_linear.py',
    '../_base_/datasets/ade20k_518.py',
    '../_base_/recipes/cdra_ade20k.py',
]
