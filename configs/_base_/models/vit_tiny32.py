"""The small ViT of the demo: 192 wide, 6 blocks, patch 4, trained on 32 x 32 pixels.

Weights: ``CDRA_VIT_TINY32``, or the path below (relative to where the run starts). At another size
the position embedding is resized when they are loaded.
"""

vit_tiny32 = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=192, num_layers=6, num_heads=3, feedforward_channels=768),
    patch_size=4,
    init_cfg=dict(
        type='Pretrained',
        checkpoint='{{$CDRA_VIT_TINY32:assets/vit_tiny32_in200.pth}}',
        prefix='backbone.',
    ),
)
