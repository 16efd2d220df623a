"""CDRA of DINOv3 ViT-B/16 with a linear head on ADE20K.

Command: python tools/train.py configs/cdra/dinov3_base_linear_ade20k.py (one GPU, 16 images a step;
    on N GPUs add --cfg-options train_dataloader.batch_size=<16 / N>)
Data: CDRA_ADE20K_ROOT, see configs/_base_/datasets/ade20k.py.
Memory: 15 to 18 GB in fp32, estimated from the bytes saved for the backward pass (with no adapters,
    with the widest); not measured.
Result: not yet measured.
Weights: under a licence that one must accept, see configs/_base_/models/dinov3_base_linear.py.
"""

_base_ = [
    '../_base_/models/dinov3_base_linear.py',
    '../_base_/datasets/ade20k_512.py',
    '../_base_/recipes/cdra_ade20k.py',
]
