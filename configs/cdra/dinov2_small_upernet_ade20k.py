"""CDRA of DINOv2 ViT-S/14 under UPerNet on ADE20K.

Command: python tools/train.py configs/cdra/dinov2_small_upernet_ade20k.py (one GPU, 16 images a
    step; on N GPUs add --cfg-options train_dataloader.batch_size=<16 / N>)
Data: CDRA_ADE20K_ROOT, see configs/_base_/datasets/ade20k.py.
Memory: 26 to 28 GB in fp32, estimated from the bytes saved for the backward pass (with no adapters,
    with the widest); not measured.
Result: not yet measured. The frozen backbone with a linear head on its last layer is published at
    44.3 mIoU (DINOv2).
"""

_base_ = [
    '../_base_/models/dinov2_small_upernet.py',
    '../_base_/datasets/ade20k_518.py',
    '../_base_/recipes/cdra_ade20k.py',
]
