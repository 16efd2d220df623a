"""Small models of those who use peft, each with a batch, a loss and its head; nothing is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZE, CLASSES = 32, 3
KINDS = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=8
)


@dataclass(frozen=True)
class Client:
    """One model.

    Attributes:
        build: Gives it with the same random weights each time.
        head: Its ``modules_to_save``.
        also_train: A token of it.
        batch: What `call` takes.
        loss: See `cdra_mm.peft.cdra_config`.
        call: Gives its outputs for a batch, as one tensor.
    """

    build: Callable[[], nn.Module]
    head: list[str]
    also_train: list[str]
    batch: Callable[[], Any]
    loss: Callable[[nn.Module, Any], Any]
    call: Callable[[nn.Module, Any], Tensor]


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """A model in evaluation mode whose weights are the same each time, none at a special value."""
    state = torch.get_rng_state()
    torch.manual_seed(7)
    model = build()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    torch.set_rng_state(state)
    return model.eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))


def _timm(**options: Any) -> nn.Module:
    timm = pytest.importorskip('timm')
    sizes = dict(img_size=SIZE, patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2)
    return timm.models.VisionTransformer(num_classes=CLASSES, **sizes, **options)


def timm_client(**options: Any) -> Client:
    """A timm ViT: a fused qkv, tokens of the model itself."""
    return Client(
        build=lambda: seeded(lambda: _timm(**options)),
        head=['head'],
        also_train=['cls_token'],
        batch=lambda: (images(), torch.tensor([0, 1, 2, 0])),
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction='none'),
        call=lambda model, batch: model(batch[0]),
    )


def _transformers(name: str, config: str, **options: Any) -> nn.Module:
    transformers = pytest.importorskip('transformers', '5.24')
    return getattr(transformers, name)(getattr(transformers, config)(**options))


def labelled(labels: Tensor) -> dict[str, Tensor]:
    return dict(pixel_values=images(len(labels)), labels=labels)


def mean_loss(model: nn.Module, batch: Any) -> Any:
    from cdra_mm.peft import mean_loss

    return mean_loss(model, batch)


def classes() -> Tensor:
    return torch.tensor([0, 1, 2, 0])


def masks() -> Tensor:
    return torch.randint(0, CLASSES, (4, SIZE, SIZE), generator=torch.Generator())


def transformers_client(
    name: str,
    config: str,
    head: list[str],
    also_train: list[str],
    labels: Callable[[], Tensor] = classes,
    **options: Any,
) -> Client:
    """A classifier of transformers, with masks as labels a segmentor, by the name of its class."""
    return Client(
        build=lambda: seeded(lambda: _transformers(name, config, num_labels=CLASSES, **options)),
        head=head,
        also_train=also_train,
        batch=lambda: labelled(labels()),
        loss=mean_loss,
        call=lambda model, batch: model(pixel_values=batch['pixel_values']).logits,
    )


class _Headed(nn.Module):
    """DINOv3 of transformers, which has no classifier of its own, with one."""

    def __init__(self) -> None:
        super().__init__()
        options = dict(**KINDS, intermediate_size=64, num_register_tokens=2)
        self.backbone = _transformers('DINOv3ViTModel', 'DINOv3ViTConfig', **options)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.head(self.backbone(pixel_values=pixel_values).pooler_output)


def dinov3_client() -> Client:
    return Client(
        build=lambda: seeded(_Headed),
        head=['head'],
        also_train=['backbone.embeddings.cls_token'],
        batch=lambda: (images(), torch.tensor([0, 1, 2, 0])),
        loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction='none'),
        call=lambda model, batch: model(batch[0]),
    )


def eomt_client() -> Client:
    """A segmentor by masks: its queries meet the image in its last blocks."""
    options = dict(**KINDS, mlp_ratio=2, num_queries=4, num_blocks=1, num_upscale_blocks=1)

    def batch() -> dict[str, Any]:
        masks = torch.zeros(2, 2, SIZE, SIZE)
        masks[:, 0, :16], masks[:, 1, 16:] = 1, 1
        classes = [torch.tensor([0, 1]), torch.tensor([2, 0])]
        return dict(pixel_values=images(2), mask_labels=list(masks), class_labels=classes)

    def loss(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, int]:
        return model(**batch).loss.reshape(()), 2

    return Client(
        build=lambda: seeded(
            lambda: _transformers('EomtForUniversalSegmentation', 'EomtConfig', num_labels=CLASSES,
                                  **options)
        ),
        head=['class_predictor', 'mask_head'],
        also_train=['embeddings.cls_token'],
        batch=batch,
        loss=loss,
        call=lambda model, batch: model(pixel_values=batch['pixel_values']).masks_queries_logits,
    )  # fmt: skip


FFN = dict(intermediate_size=64)
CLIENTS: dict[str, Client] = {
    'timm ViT': timm_client(),
    'timm DINOv2': timm_client(init_values=1e-1, reg_tokens=2, no_embed_class=True),
    'ViT': transformers_client(
        'ViTForImageClassification', 'ViTConfig', ['classifier'],
        ['vit.embeddings.cls_token'], **KINDS, **FFN,
    ),
    'DINOv2': transformers_client(
        'Dinov2ForImageClassification', 'Dinov2Config', ['classifier'],
        ['dinov2.embeddings.cls_token'], **KINDS, mlp_ratio=2,
    ),
    'DINOv2 with registers': transformers_client(
        'Dinov2WithRegistersForImageClassification', 'Dinov2WithRegistersConfig', ['classifier'],
        ['dinov2_with_registers.embeddings.register_tokens'], **KINDS, mlp_ratio=2,
    ),
    'DINOv3': dinov3_client(),
    'BEiT': transformers_client(
        'BeitForImageClassification', 'BeitConfig', ['classifier'],
        ['beit.embeddings.cls_token'], **KINDS, **FFN,
    ),
    'BEiT segmentor': transformers_client(
        'BeitForSemanticSegmentation', 'BeitConfig', ['decode_head', 'fpn'],  # it has running means
        ['beit.embeddings.cls_token'], masks, **{**KINDS, **FFN, 'num_hidden_layers': 4},
        out_indices=[1, 2, 3, 4], pool_scales=[1, 2], use_auxiliary_head=False,
    ),
    'SegFormer': transformers_client(
        'SegformerForSemanticSegmentation', 'SegformerConfig', ['decode_head'], [], masks,
        num_encoder_blocks=2, depths=[1, 1], hidden_sizes=[16, 32], num_attention_heads=[1, 2],
        patch_sizes=[7, 3], strides=[4, 2], sr_ratios=[2, 1], mlp_ratios=[2, 2],
        decoder_hidden_size=16,
    ),
    'EoMT': eomt_client(),
}  # fmt: skip


def output(client: Client, model: nn.Module) -> Tensor:
    """What a model gives, in evaluation mode."""
    with torch.no_grad():
        return client.call(model.eval(), client.batch())


def config_of(client: Client, **settings: Any) -> Any:
    """The config of a client's own data."""
    from cdra_mm.peft import cdra_config

    settings = {'budget_percent': 8, 'also_train': client.also_train, **settings}
    return cdra_config(
        client.build(), [client.batch()], client.loss, modules_to_save=client.head, **settings
    )


def trained(client: Client, config: Any, steps: int = 2, seed: int = 0) -> nn.Module:
    """A peft model of a client after a few steps, so that no trained value is where it began."""
    from peft import get_peft_model

    model = get_peft_model(client.build(), config)
    torch.manual_seed(seed)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = client.loss(model, client.batch())
        (loss[0] if isinstance(loss, tuple) else loss.mean()).backward()
        optimizer.step()
    return model.eval()
