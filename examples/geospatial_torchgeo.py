"""Land cover from 13 bands with torchgeo: score, plan and train a ViT, save, load and merge it.

    python examples/geospatial_torchgeo.py              # synthetic tiles, half a minute on a CPU
    python examples/geospatial_torchgeo.py --weights ViTSmall16_Weights.SENTINEL2_ALL_MOCO

Needs ``pip install 'cdra-mm[peft]' torchgeo``. Put a data set of your own in the place of `tiles`:
dicts with ``image [C, H, W]`` and ``label``, as torchgeo's classification data sets give them.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchgeo.models import get_model, get_weight

from cdra_mm.peft import cdra_config

BANDS, CLASSES = 13, 4  # all bands of Sentinel-2


def tiles(seed: int, count: int, size: int) -> list[dict[str, Tensor]]:
    """Tiles of four covers, each with a spectrum of its own under noise."""
    spectra = torch.randn(CLASSES, BANDS, 1, 1, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    noise = torch.randn(count, BANDS, size, size, generator=generator)
    images = noise + 0.5 * spectra[labels]
    return [dict(image=i, label=label) for i, label in zip(images, labels, strict=True)]


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss of each sample, for the scores."""
    return F.cross_entropy(model(batch['image']), batch['label'], reduction='none')


@torch.no_grad()
def accuracy(model: nn.Module, data: list[dict[str, Tensor]]) -> float:
    """Share of right answers."""
    batches = DataLoader(data, batch_size=16)
    right = [(model.eval()(b['image']).argmax(1) == b['label']).float() for b in batches]
    return float(torch.cat(right).mean())


def main() -> None:
    """Trains an adapter and the head."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--model', default='vit_small_patch16_224', help='a ViT of torchgeo')
    parser.add_argument('--weights', help="torchgeo's name of its weights (default: random)")
    parser.add_argument('--size', type=int, default=32, help='pixels a side; weights: 224')
    parser.add_argument('--count', type=int, default=32, help='tiles to train on')
    parser.add_argument('--epochs', type=int, default=3)
    parser.add_argument('--rate', type=float, default=2e-3, help='learning rate')
    asked = parser.parse_args()

    def build() -> nn.Module:
        torch.manual_seed(0)
        weights = get_weight(asked.weights) if asked.weights else None
        return get_model(
            asked.model, weights=weights, in_chans=BANDS, num_classes=CLASSES, img_size=asked.size
        )

    data, test = tiles(0, asked.count, asked.size), tiles(1, 16, asked.size)
    loader = DataLoader(data, batch_size=8, shuffle=True)
    config = cdra_config(build(), loader, losses, modules_to_save=['head'], budget_percent=0.5)
    model = get_peft_model(build(), config)
    model.print_trainable_parameters()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], asked.rate)
    print(f'right on other tiles, before: {accuracy(model, test):.0%}')
    for _ in range(asked.epochs):
        for batch in loader:
            optimizer.zero_grad()
            losses(model.train(), batch).mean().backward()
            optimizer.step()
    print(f'right on other tiles, after: {accuracy(model, test):.0%}')

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        images = torch.stack([tile['image'] for tile in test])
        expected = model(images)
        again = PeftModel.from_pretrained(build(), folder).eval()
        print('reloaded, largest difference:', float((again(images) - expected).abs().max()))
        plain = build().eval()
        plain.load_state_dict(again.merge_and_unload().state_dict())
        print('merged, largest difference:', float((plain(images) - expected).abs().max()))


if __name__ == '__main__':
    main()
