"""CDRA of DINOv2 ViT-S/14 under UPerNet on PASCAL VOC 2012 (train + SBD labels).

Command: python tools/train.py configs/cdra/dinov2_small_upernet_voc.py (one GPU, 16 images a step;
    on N GPUs add --cfg-options train_dataloader.batch_size=<16 / N>)
Data: CDRA_VOC_ROOT, see configs/_base_/datasets/voc_aug.py.
Memory: 17 to 19 GB in fp32, estimated from the bytes saved for the backward pass (with no adapters,
    with the widest); not measured.
Result: not yet measured. The frozen backbone with a linear head on its last layer is published at
    81.1 mIoU (DINOv2).
"""

_base_ = [
    '../_base_/models/dinov2_small_upernet.py',
    '../_base_/datasets/voc_aug_518.py',
    '../_base_/recipes/cdra_voc.py',
]

model = dict(decode_head=dict(num_classes=21), auxiliary_head=dict(num_classes=21))
