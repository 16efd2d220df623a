"""CDRA of DINOv2 ViT-g/14 under UPerNet on PASCAL VOC 2012 (train + SBD labels).

Command: python tools/train.py configs/cdra/dinov2_giant_upernet_voc.py (16 images a step; on N GPUs
    add --cfg-options train_dataloader.batch_size=<16 / N>)
Data: CDRA_VOC_ROOT, see configs/_base_/datasets/voc_aug.py.
Memory: 98 to 122 GB in fp32, estimated from the bytes saved for the backward pass (with no
    adapters, with the widest); not measured.
Result: not yet measured. In fp32 this does not fit one GPU of 80 GB: take several, or try --amp.
"""

_base_ = [
    '../_base_/models/dinov2_giant_upernet.py',
    '../_base_/datasets/voc_aug_518.py',
    '../_base_/recipes/cdra_voc.py',
]

model = dict(decode_head=dict(num_classes=21), auxiliary_head=dict(num_classes=21))
