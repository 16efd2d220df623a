"""DINOv2 ViT-B/14 with four registers at 490 pixels under a bare 1x1 convolution, without a norm.

The position embedding, trained for 518 pixels, is resized in every forward.
"""

_base_ = './dinov2_reg_base_linear.py'

model = dict(
    data_preprocessor=dict(size=(490, 490)),
    decode_head=dict(
        _delete_=True,
        type='FCNHead',
        in_channels=768,
        channels=768,
        in_index=0,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        num_classes=150,
        align_corners=False,
        # Averaged over the labelled pixels, as PyTorch does it; mmseg's default is all pixels.
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, avg_non_ignore=True),
    ),
    test_cfg=dict(_delete_=True, mode='whole'),
)
