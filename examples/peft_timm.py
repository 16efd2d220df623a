"""Two tasks on one timm backbone with peft: train, switch, sum up, merge.

    python examples/peft_timm.py                        # synthetic images, some seconds on a CPU
    python examples/peft_timm.py --model vit_small_patch14_dinov2 --pretrained --size 224

Needs ``pip install 'cdra-mm[peft]' timm``. Put a data set of your own in the place of `task`.
"""

from __future__ import annotations

import argparse
import tempfile

import timm
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from cdra_mm.peft import cdra_config

CLASSES = 4


def task(seed: int, size: int, count: int) -> TensorDataset:
    """Images whose class is where they are bright; each task has its own rule."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, size, size, generator=generator)
    labels = torch.arange(count) % CLASSES
    half = size // 2
    for image, label in zip(images, (labels + seed) % CLASSES, strict=True):
        top, left = divmod(int(label), 2)
        image[:, top * half : (top + 1) * half, left * half : (left + 1) * half] += 1.5
    return TensorDataset(images, labels)


def losses(model: torch.nn.Module, batch: list[Tensor]) -> Tensor:
    """The loss of each sample, for the scores."""
    return F.cross_entropy(model(batch[0]), batch[1], reduction='none')


def train(model: torch.nn.Module, data: TensorDataset, epochs: int, rate: float) -> None:
    """Trains what is trainable: the adapter in use and its head."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, rate)
    model.train()
    for _ in range(epochs):
        for batch in DataLoader(data, batch_size=16, shuffle=True):
            optimizer.zero_grad()
            losses(model, batch).mean().backward()
            optimizer.step()
    model.eval()


@torch.no_grad()
def accuracy(model: torch.nn.Module, data: TensorDataset) -> float:
    """Share of right answers."""
    images, labels = data.tensors
    return float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    """Trains two adapters and shows what one can do with them."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--model', default='vit_tiny_patch16_224', help='a ViT of timm')
    parser.add_argument('--pretrained', action='store_true', help='load its weights')
    parser.add_argument('--size', type=int, default=32, help='side of the images, pixels')
    parser.add_argument('--count', type=int, default=64, help='images of a task')
    parser.add_argument('--epochs', type=int, default=2)
    parser.add_argument('--rate', type=float, default=3e-3, help='learning rate')
    asked = parser.parse_args()

    torch.manual_seed(0)
    backbone = timm.create_model(
        asked.model, pretrained=asked.pretrained, num_classes=CLASSES, img_size=asked.size
    )
    first, second = (task(seed, asked.size, asked.count) for seed in (0, 1))

    configs = [
        cdra_config(
            backbone, DataLoader(data, 16), losses, modules_to_save=['head'], budget_percent=0.5
        )
        for data in (first, second)
    ]
    model = get_peft_model(backbone, configs[0], adapter_name='first')
    model.print_trainable_parameters()
    train(model, first, asked.epochs, asked.rate)
    model.add_adapter('second', configs[1])
    model.set_adapter('second')
    train(model, second, asked.epochs, asked.rate)

    for name, data in (('first', first), ('second', second)):
        model.set_adapter(name)
        print(f'{name}: {accuracy(model, data):.0%} of its own task')

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        fresh = timm.create_model(asked.model, num_classes=CLASSES, img_size=asked.size)
        fresh.load_state_dict(backbone_state(model))
        read = PeftModel.from_pretrained(fresh, f'{folder}/second').eval()
        images = second.tensors[0]
        with torch.no_grad():
            print(
                'reloaded, largest difference:', float((read(images) - model(images)).abs().max())
            )
            merged = read.merge_and_unload()
            print(
                'merged, largest difference:', float((merged(images) - model(images)).abs().max())
            )


def backbone_state(model: PeftModel) -> dict[str, Tensor]:
    """The base weights, as they were before an adapter was put on."""
    from peft.utils.save_and_load import get_base_model_state_dict

    return get_base_model_state_dict(model)


if __name__ == '__main__':
    main()
