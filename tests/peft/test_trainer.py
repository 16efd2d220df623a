"""Training by transformers' Trainer, and by accelerate on two processes."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip('peft', '0.21', reason='peft (extra peft) is not installed')
pytest.importorskip('transformers', '5.24')
pytest.importorskip('accelerate')

import accelerate
import transformers
from accelerate.state import AcceleratorState, GradientState
from peft import PeftModel, get_peft_model

from cdra_mm.peft import cdra_config

from .clients import CLASSES, CLIENTS, SIZE, config_of, images, output

SEGMENTORS = ('SegFormer', 'BEiT segmentor')


def data(name, count=16):
    """Images whose class, or classes of pixels, follow from their brightness."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for index in range(count):
        label = index % CLASSES
        image = torch.randn(3, SIZE, SIZE, generator=generator) + label
        mask = torch.full((SIZE, SIZE), label)
        if name == 'EoMT':
            of_masks = dict(mask_labels=mask[None] == label, class_labels=torch.tensor([label]))
            found.append(dict(pixel_values=image, **of_masks))
        else:
            labels = mask if name in SEGMENTORS else torch.tensor(label)
            found.append(dict(pixel_values=image, labels=labels))
    return found


def collated(samples):
    """A batch; masks stay a list, as there may be more of them in one image than in another."""
    if 'labels' in samples[0]:
        return transformers.default_data_collator(samples)
    return dict(
        pixel_values=torch.stack([sample['pixel_values'] for sample in samples]),
        mask_labels=[sample['mask_labels'].float() for sample in samples],
        class_labels=[sample['class_labels'] for sample in samples],
    )


def trainer_of(name, folder, **changed):
    client = CLIENTS[name]
    samples = data(name)
    batches = [collated(samples[:8])]
    config = cdra_config(
        client.build(),
        batches,
        client.loss,
        modules_to_save=client.head,
        budget_percent=8,
        progress=False,
    )
    settings = dict(
        output_dir=str(folder), use_cpu=True, report_to=[], disable_tqdm=True, max_steps=6,
        per_device_train_batch_size=4, learning_rate=1e-2, seed=3, save_strategy='steps',
        eval_strategy='steps', save_steps=2, eval_steps=2, logging_strategy='no',
        prediction_loss_only=True,
        load_best_model_at_end=True, metric_for_best_model='eval_loss', dataloader_num_workers=0,
    )  # fmt: skip
    return transformers.Trainer(
        get_peft_model(client.build(), config),
        transformers.TrainingArguments(**{**settings, **changed}),
        train_dataset=samples,
        eval_dataset=samples[:4],
        data_collator=collated,
    )


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('name', ['DINOv2', *SEGMENTORS, 'EoMT'])
def test_trainer_saves_resumes_and_takes_the_best(name, tmp_path):
    client = CLIENTS[name]
    whole = trainer_of(name, tmp_path / 'whole')
    first = whole.evaluate()['eval_loss']
    whole.train()
    last = [entry['eval_loss'] for entry in whole.state.log_history if 'eval_loss' in entry]
    assert min(last[1:]) < first
    assert whole.state.best_model_checkpoint
    if name != 'EoMT':  # whose loss is of points that are drawn
        assert whole.evaluate()['eval_loss'] == min(last[1:])
    best = PeftModel.from_pretrained(client.build(), whole.state.best_model_checkpoint)
    assert torch.equal(output(client, best), output(client, whole.model))
    assert not list((tmp_path / 'whole').rglob('model.safetensors'))  # no copy of the base

    options = dict(load_best_model_at_end=False)
    uncut = trainer_of(name, tmp_path / 'uncut', **options)
    uncut.train()
    resumed = trainer_of(name, tmp_path / 'uncut', **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / 'uncut/checkpoint-4'))
    for key, value in resumed.model.state_dict().items():
        assert torch.equal(value, uncut.model.state_dict()[key]), key


def train(folder, config, size):
    """Two passes over eight images, in batches of this size in each process."""
    AcceleratorState._reset_state(reset_partial_state=True)  # a forked process has its parent's
    GradientState._reset_state()
    accelerator = accelerate.Accelerator(cpu=True)
    client = CLIENTS['timm ViT']
    model = get_peft_model(client.build(), config)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    samples = list(zip(images(8), torch.arange(8) % CLASSES, strict=True))
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(samples, size))
    for _ in range(2):
        for batch in loader:
            optimizer.zero_grad()
            accelerator.backward(client.loss(model, batch).mean())
            optimizer.step()
    accelerator.wait_for_everyone()
    accelerator.unwrap_model(model).save_pretrained(
        folder / str(accelerator.num_processes),
        is_main_process=accelerator.is_main_process,
        state_dict=accelerator.get_state_dict(model),
    )
    accelerator.end_training()


def test_two_processes_train_what_one_does(tmp_path):
    client = CLIENTS['timm ViT']
    config = config_of(client)
    # It forks, from a process of its own: none that has compiled a model may, whose autograd has
    # threads then.
    given = train, (tmp_path, config, 2), 2
    launcher = multiprocessing.get_context('spawn').Process(
        target=accelerate.debug_launcher, args=given
    )
    launcher.start()
    launcher.join()
    assert launcher.exitcode == 0
    train(tmp_path, config, 4)
    one, two = (
        output(client, PeftModel.from_pretrained(client.build(), tmp_path / name))
        for name in ('1', '2')
    )
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert (one - output(client, client.build())).abs().max() > 1e-3
