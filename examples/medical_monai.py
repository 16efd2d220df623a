"""3-D segmentation with MONAI: score, plan and train a UNETR, save, load and merge it.

    python examples/medical_monai.py                    # synthetic volumes, half a minute on a CPU
    python examples/medical_monai.py --weights vit.pt --size 96    # its sizes are UNETR's own

Needs ``pip install 'cdra-mm[peft]' monai``. Put a data set of your own in the place of `volumes`:
dicts with ``image [C, D, H, W]`` and ``label [1, D, H, W]``, as MONAI's transforms give them.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
from monai.data import DataLoader
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import compute_dice
from monai.networks.nets import UNETR
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from cdra_mm.peft import cdra_config

CLASSES = 2
# All but the transformer. peft goes by the end of a path: 'out' would mean its dropout, too.
HEAD = [f'encoder{i}' for i in (1, 2, 3, 4)] + [f'decoder{i}' for i in (2, 3, 4, 5)] + ['out.conv']


def volumes(seed: int, count: int, size: int) -> list[dict[str, Tensor]]:
    """Noise with a bright cuboid, and where it is."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        label = torch.zeros(1, size, size, size)
        first = torch.randint(0, size // 2, (3,), generator=generator).tolist()
        label[0][tuple(slice(at, at + size // 2) for at in first)] = 1
        image = torch.randn(label.shape, generator=generator) + 1.5 * label
        found.append(dict(image=image, label=label))
    return found


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss of each sample, for the scores."""
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    pairs = zip(model(batch['image']).split(1), batch['label'].split(1), strict=True)
    return torch.stack([criterion(*pair) for pair in pairs])


@torch.no_grad()
def dice(model: nn.Module, data: list[dict[str, Tensor]], size: int) -> float:
    """Mean Dice of the foreground, by windows as on large volumes."""
    images, labels = (torch.stack([sample[key] for sample in data]) for key in ('image', 'label'))
    found = sliding_window_inference(images, (size,) * 3, 1, model.eval()).argmax(1, keepdim=True)
    return float(compute_dice(found, labels, include_background=False, num_classes=CLASSES).mean())


def main() -> None:
    """Trains an adapter and the decoder."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--weights', help="state dict of UNETR's ViT (default: small and random)")
    parser.add_argument('--size', type=int, default=32, help='side of the volumes, voxels')
    parser.add_argument('--count', type=int, default=8, help='volumes to train on')
    parser.add_argument('--epochs', type=int, default=4)
    parser.add_argument('--rate', type=float, default=5e-3, help='learning rate')
    asked = parser.parse_args()

    def build() -> UNETR:
        torch.manual_seed(0)
        small = dict(hidden_size=48, mlp_dim=192, feature_size=4)
        model = UNETR(1, CLASSES, (asked.size,) * 3, **({} if asked.weights else small))
        if asked.weights:
            model.vit.load_state_dict(torch.load(asked.weights, weights_only=True))
        return model

    data, test = volumes(0, asked.count, asked.size), volumes(1, 4, asked.size)
    loader = DataLoader(data, batch_size=2, shuffle=True)
    config = cdra_config(build(), loader, losses, modules_to_save=HEAD, budget_percent=2)
    model = get_peft_model(build(), config)
    model.print_trainable_parameters()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], asked.rate)
    print(f'Dice on other volumes, before: {dice(model, test, asked.size):.3f}')
    for _ in range(asked.epochs):
        for batch in loader:
            optimizer.zero_grad()
            losses(model.train(), batch).mean().backward()
            optimizer.step()
    print(f'Dice on other volumes, after: {dice(model, test, asked.size):.3f}')

    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        expected = model(image := test[0]['image'][None])
        again = PeftModel.from_pretrained(build(), folder).eval()
        print('reloaded, largest difference:', float((again(image) - expected).abs().max()))
        plain = build().eval()
        plain.load_state_dict(again.merge_and_unload().state_dict())
        print('merged, largest difference:', float((plain(image) - expected).abs().max()))


if __name__ == '__main__':
    main()
