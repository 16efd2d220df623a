"""What `cdra merge` can make of a checkpoint with adapters: one function a format.

Each writes its file or folder whole or not at all, and returns what is to be told about it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config

from cdra_mm.core import (
    base_state,
    digests_of,
    plan_of,
    save_adapter,
    save_task,
    trained_whole,
)
from cdra_mm.core.artifacts.files import read_adapter
from cdra_mm.core.artifacts.task_files import read_task
from cdra_mm.errors import ConfigError
from cdra_mm.storage import write_atomically

from ..checkpoints.record import record_of, relied_on, stored_names
from ..inputs import named_files
from .cdra_format import to_cdra, write_cdra
from .destination import check_destination, is_adapter, is_merged, is_onnx, is_peft, is_task
from .merging import Adapted, Merged, build_backbone, merge_checkpoint, open_adapted
from .onnx_export import export_onnx
from .outputs import image_size
from .peft_format import to_peft, write_peft
from .task_head import head_of

__all__ = ['FORMATS', 'Export', 'check_options']


@dataclass(frozen=True)
class Export:
    """What is asked for.

    Attributes:
        config: Config of the model.
        checkpoint: The checkpoint with adapters.
        out: The file or folder to write.
        names: Of the formats of peft: whose names the weights get.
        shape: Of the format ``onnx``: height and width of the images, pixels.
        dtype: Of the format ``task``: type in which adapters and head are stored.
    """

    config: Config
    checkpoint: str
    out: Path
    names: str | None = None
    shape: tuple[int, int] | None = None
    dtype: str | None = None


def _write_merged(asked: Export) -> list[str]:
    """A plain checkpoint that the stock model loads strictly."""
    merged = merge_checkpoint(asked.config, asked.checkpoint)
    write_atomically(asked.out, lambda temporary: torch.save(merged.checkpoint, temporary))
    return [
        f'{merged.num_adapters} adapters merged; largest difference of {_compared(merged)} on a '
        f'random image {merged.difference:.1e} ({merged.compared}s up to {merged.scale:.3g})',
        f'{asked.out}: {_mib([asked.out])} (with adapters, without the frozen base: '
        f'{_mib([Path(asked.checkpoint)])}); loads strictly into the plain model',
    ]


def _compared(merged: Merged) -> str:
    if merged.compared == 'output':
        return 'an output'
    return f'a feature of backbone and neck ({merged.why}: its head was not compared)'


def _write_adapter(asked: Export) -> list[str]:
    """The adapter file: what is trained of the backbone, and where it goes."""
    adapted = open_adapted(asked.config, asked.checkpoint)
    relied = relied_on(adapted.backbone, record_of(adapted.backbone))
    source = {'source': json.dumps(adapted.provenance)}
    save_adapter(adapted.backbone, asked.out, metadata=source, **relied)
    lines = [
        f'{asked.out}: {_mib([asked.out])}, {adapted.provenance["num_adapters"]} adapters of the '
        'backbone; the head is not in it; cdra_mm.core.load_adapter puts it on the base'
    ]
    carried = read_adapter(asked.out).carried
    if carried:
        lines.append(_along(len(carried), carried[0], 'in the file'))
    return lines


def _write_task(asked: Export) -> list[str]:
    """The task file: the adapter file and what the model has outside of its backbone."""
    adapted = open_adapted(asked.config, asked.checkpoint)
    head = head_of(adapted.model)
    relied = relied_on(adapted.backbone, record_of(adapted.backbone))
    classes = (adapted.meta.get('dataset_meta') or {}).get('classes') or ()
    source = {'source': json.dumps(adapted.provenance)}
    options = dict(dtype=asked.dtype, classes=list(classes), metadata=source, **relied)
    save_task(adapted.backbone, asked.out, head, **options)
    count = sum(parameter.numel() for parameter in head.parameters())
    lines = [
        f'{asked.out}: {_mib([asked.out])}, {adapted.provenance["num_adapters"]} adapters of the '
        f'backbone and a head of {count:,} parameters; cdra_mm.core.MultiTask puts it on the base'
    ]
    carried = read_task(asked.out).adapter.carried
    if carried:
        lines.append(_along(len(carried), carried[0], 'in the file'))
    return lines


def _write_peft(asked: Export) -> list[str]:
    """A folder in the format of Hugging Face PEFT."""
    adapted = open_adapted(asked.config, asked.checkpoint)
    image = adapted.random_image()
    carried = _not_of_the_base(adapted)
    adapter = to_peft(adapted.backbone, lambda: adapted.backbone(image), asked.names, carried)
    write_peft(adapter, asked.out, {'source': json.dumps(adapted.provenance)})
    what = "timm's model" if adapter.names == 'timm' else 'the backbone of the config'
    lines = [
        f'{asked.out}: {_mib(asked.out.iterdir())}, LoRA on {len(adapter.config["rank_pattern"])} '
        f'layers of rank up to {adapter.config["r"]}; peft.PeftModel.from_pretrained puts it on '
        f'{what} with the base weights'
    ]
    if adapter.copied:
        lines.append(
            f'{len(adapter.copied)} trained vectors and tokens are no LoRA (the first is '
            f'{adapter.copied[0]}): PEFT copies them into the base model when it loads the folder'
        )
    if carried:
        lines.append(_along(len(carried), carried[0], 'in the folder, and PEFT copies them too'))
    return lines


def _write_cdra(asked: Export) -> list[str]:
    """A folder that `cdra_mm.peft` makes known to Hugging Face PEFT."""
    adapted = open_adapted(asked.config, asked.checkpoint)
    carried = _not_of_the_base(adapted)
    plain = build_backbone(adapted.config)
    plain.init_weights()
    adapter = to_cdra(adapted.backbone, plain, asked.names, carried)
    write_cdra(adapter, asked.out, {'source': json.dumps(adapted.provenance)})
    plan = adapter.config.require_plan()
    what = "timm's model" if adapter.names == 'timm' else 'the backbone of the config'
    lines = [
        f'{asked.out}: {_mib(asked.out.iterdir())}, {plan.num_trainable:,} trained values in '
        f'{len(plan.blocks)} blocks and {len(plan.vectors) + len(plan.also_train)} vectors and '
        'tokens; after import cdra_mm.peft, peft.PeftModel.from_pretrained puts it on '
        f'{what} with the base weights'
    ]
    if carried:
        lines.append(_along(len(carried), carried[0], 'in the folder, and PEFT copies them'))
    return lines


def _write_onnx(asked: Export) -> list[str]:
    """The merged model in ONNX."""
    merged = merge_checkpoint(asked.config, asked.checkpoint)
    size = asked.shape or image_size(asked.config.model, merged.model.backbone)
    meta = merged.checkpoint['meta']
    classes = (meta.get('dataset_meta') or {}).get('classes') or ()
    metadata = {'classes': list(classes), 'source': meta['cdra_merged']}
    channels = merged.image.shape[1]
    difference = export_onnx(merged.model, asked.out, (channels, *size), metadata)
    return [
        f'{asked.out}: {_mib([asked.out])}, images [B, {channels}, {size[0]}, {size[1]}] for any '
        'B; onnxruntime gives the outputs of the merged model but for '
        f'{difference:.1e} of the largest'
    ]


FORMATS: dict[str, Callable[[Export], list[str]]] = {
    'merged': _write_merged,
    'adapter': _write_adapter,
    'task': _write_task,
    'peft': _write_peft,
    'peft-cdra': _write_cdra,
    'onnx': _write_onnx,
}
# Which formats take an option.
OPTIONS = {'names': ('peft', 'peft-cdra'), 'shape': ('onnx',), 'dtype': ('task',)}
FOLDERS = ('peft', 'peft-cdra')
# What --force may replace: what it is called, and how it is told.
REPLACED: dict[str, tuple[str, Callable[[Path], bool]]] = {
    'merged': ('merged checkpoint', is_merged),
    'adapter': ('adapter file', is_adapter),
    'task': ('task file', is_task),
    'peft': ('folder of a PEFT adapter alone', is_peft),
    'peft-cdra': ('folder of a PEFT adapter alone', is_peft),
    'onnx': ('ONNX model exported here', is_onnx),
}


def check_options(asked: Export, to: str, force: bool) -> None:
    """Refuses options of another format, and a place that cannot be written to.

    Raises:
        ConfigError: If an option belongs to another format.
        CheckpointError: If OUT is read, or is there and may not be replaced, or cannot be written.
    """
    for option, owners in OPTIONS.items():
        if getattr(asked, option) is not None and to not in owners:
            raise ConfigError(f'--{option} is for --format {" or ".join(owners)}, not {to}')
    if asked.shape is not None and min(asked.shape) < 1:
        raise ConfigError(f'--shape {asked.shape[0]} {asked.shape[1]}: expected pixels, 1 or more')
    what, is_own = REPLACED[to]
    check_destination(
        asked.out,
        [('the checkpoint', str(asked.checkpoint)), *named_files(asked.config)],
        folder=to in FOLDERS,
        force=force,
        what=what,
        is_own=is_own,
    )


def _not_of_the_base(adapted: Adapted) -> list[str]:
    """Names of what is neither trained nor brought by the base that the config or the run names."""
    backbone = adapted.backbone
    record = record_of(backbone)
    state = base_state(backbone)
    if record is not None and record.left_out:
        stored = stored_names(backbone, record)
    else:  # the checkpoint stores all of it: what does the config bring?
        plain = build_backbone(adapted.config)
        plain.init_weights()
        fresh = digests_of(base_state(plain))
        stored = {name for name, text in digests_of(state).items() if fresh.get(name) != text}
    plan = plan_of(backbone)
    return sorted(stored - set(trained_whole(plan) if plan is not None else ()))


def _along(count: int, first: str, where: str) -> str:
    what = '1 weight or buffer is' if count == 1 else f'{count} weights and buffers are'
    return (
        f'{what} not of the named base, or changed in training (the first is {first}): their '
        f'values are {where}'
    )


def _mib(files: Iterable[Path]) -> str:
    return f'{sum(file.stat().st_size for file in files) / 2**20:.2f} MiB'
