"""Segmentation by transformers' Trainer: score, plan, train, save and load again.

    python examples/peft_trainer.py                     # synthetic images, some seconds on a CPU
    python examples/peft_trainer.py --model nvidia/mit-b0

Needs ``pip install 'cdra-mm[peft]'``. Put a data set of your own in the place of `scenes`.
"""

from __future__ import annotations

import argparse
import tempfile

import torch
import transformers
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.utils.data import DataLoader

from cdra_mm.peft import cdra_config

CLASSES = 2


def scenes(count: int, size: int = 64) -> list[dict[str, Tensor]]:
    """Images with a bright square, and where it is."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        image = torch.randn(3, size, size, generator=generator)
        labels = torch.zeros(size, size, dtype=torch.long)
        top, left = torch.randint(0, size // 2, (2,), generator=generator).tolist()
        labels[top : top + size // 2, left : left + size // 2] = 1
        found.append(dict(pixel_values=image + 2.0 * labels, labels=labels))
    return found


def build(name: str | None) -> transformers.PreTrainedModel:
    """SegFormer with pretrained weights, or a small one with random weights."""
    torch.manual_seed(0)
    if name:
        return transformers.SegformerForSemanticSegmentation.from_pretrained(
            name, num_labels=CLASSES
        )
    config = transformers.SegformerConfig(
        num_encoder_blocks=2, depths=[2, 2], hidden_sizes=[32, 64], num_attention_heads=[1, 2],
        patch_sizes=[7, 3], strides=[4, 2], sr_ratios=[4, 2], mlp_ratios=[2, 2],
        decoder_hidden_size=64, num_labels=CLASSES,
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config)


def main() -> None:
    """Trains an adapter and its head, and loads what was the best."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--model', help='a SegFormer of the Hub (default: small, random weights)')
    parser.add_argument('--steps', type=int, default=30)
    asked = parser.parse_args()

    train, test = scenes(64), scenes(8)
    collate = transformers.default_data_collator
    loader = DataLoader(train, batch_size=8, collate_fn=collate)
    config = cdra_config(
        build(asked.model), loader, modules_to_save=['decode_head'], budget_percent=2
    )  # fmt: skip
    model = get_peft_model(build(asked.model), config)
    model.print_trainable_parameters()
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder, max_steps=asked.steps, per_device_train_batch_size=8,
            learning_rate=3e-3, save_strategy='steps', eval_strategy='steps',
            save_steps=asked.steps // 2, eval_steps=asked.steps // 2, load_best_model_at_end=True,
            metric_for_best_model='eval_loss', report_to=[], disable_tqdm=True,
        )  # fmt: skip
        trainer = transformers.Trainer(model, settings, train_dataset=train, eval_dataset=test)
        before = trainer.evaluate()['eval_loss']
        trainer.train()
        best = trainer.state.best_model_checkpoint
        print(f'loss {before:.3f} -> {trainer.evaluate()["eval_loss"]:.3f}')
        read = PeftModel.from_pretrained(build(asked.model).to(model.device), best).eval()
        batch = collate(test)['pixel_values'].to(model.device)
        with torch.no_grad():
            difference = (read(batch).logits - model.eval()(batch).logits).abs().max()
        print('best checkpoint loaded, largest difference:', float(difference))


if __name__ == '__main__':
    main()
