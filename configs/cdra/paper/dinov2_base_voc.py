"""CDRA of DINOv2 ViT-B/14 with registers on VOC 2012 (no SBD labels) in the paper's own protocol.

Command: python tools/train.py configs/cdra/paper/dinov2_base_voc.py (one GPU, 12 images a step)
Data: CDRA_VOC_ROOT, see configs/_base_/datasets/voc.py. Whole images, squashed to 490 x 490.
Memory: 7 to 9 GB in fp32, estimated from the bytes saved for the backward pass (with no adapters,
    with the widest); not measured.
Result: not yet measured. The paper prints 66.4 mIoU / 77.4 mDice (Table 3, 0.70 percent of the
    parameters), from a metric that ANDs and ORs class ids bitwise, averaged over images: no mIoU,
    and not to be compared with one. This config reports the standard accumulated mIoU and mDice.
    For that figure beside them, in a config based on this one: val_evaluator = test_evaluator =
    [dict(type='IoUMetric', iou_metrics=['mIoU', 'mDice']),
    dict(type='cdra_mm.mm.metrics.LegacyBitwiseMetric')].
The paper does not say which DINOv2 it takes; the code of the repository that it cites takes the one
    with registers, so it is taken here. That code only divides images by 255; here they are
    normalised as DINOv2 was trained.
"""

_base_ = [
    '../../_base_/models/dinov2_reg_base_conv.py',
    '../../_base_/recipes/paper_voc.py',
]

model = dict(decode_head=dict(num_classes=21))
