"""DINOv3 ViT-L/16 at 512 pixels, through timm, under DINOv2's linear segmentation head.

Weights: the file ``model.safetensors`` of timm's ``vit_large_patch16_dinov3.lvd1689m``, or the
publisher's ``.pth``, in ``CDRA_DINOV3_LARGE`` or at the path below. The publisher gives its files
after one has accepted the DINOv3 License at
https://ai.meta.com/resources/models-and-libraries/dinov3-downloads/: a licence of Meta's own, no
open-source one; it binds what is built on the weights, merged checkpoints included.
"""

_base_ = ['./segmentor.py', './heads/linear.py']

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    backbone=dict(
        type='cdra_mm.mm.backbones.TimmViT',
        model_name='vit_large_patch16_dinov3.lvd1689m',
        img_size=512,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$CDRA_DINOV3_LARGE:checkpoints/vit_large_patch16_dinov3.lvd1689m.safetensors}}',
        ),
    ),
    decode_head=dict(_base_.linear, in_channels=1024),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
