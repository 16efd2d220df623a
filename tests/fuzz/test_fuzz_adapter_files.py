"""Damaged adapter files: refused, the model as it was, or loaded with the meaning they had.

Forged ones have a digest that fits: what they say is still held against plan and model.
"""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from cdra_mm.core import adapters, apply_plan, load_adapter, save_adapter
from cdra_mm.core.artifacts.files import digest_of, read_adapter
from cdra_mm.core.model.digests import DIGESTS_KEY
from cdra_mm.core.model.own_state import PLAN_KEY
from cdra_mm.core.packed import pack_text, unpack_text
from cdra_mm.core.planning.packed_plan import MARK as PLAN_MARK
from tests.core.problems import move
from tests.models import images

from .effort import FUZZ, assert_both, judged
from .mutations import JUNK, damaged_bytes, damaged_json, damaged_values
from .plans import model, plans

DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """An adapter file of every plan."""
    path = tmp_path_factory.mktemp('adapters') / 'adapter.safetensors'
    found = []
    for plan in plans():
        adapted = apply_plan(copy.deepcopy(model()), plan)
        move(adapted)
        save_adapter(adapted, path, metrics={'mIoU': 43.5})
        found.append(path.read_bytes())
    return found


def replace(path: Path, content: bytes) -> None:
    """A file of its own: tensors read before may still be the old one's memory."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def load(kind: str, path: Path) -> bool:
    """Whether it loads into a copy of the model: all that the file says, or nothing."""
    loaded = copy.deepcopy(model())
    before = {name: value.clone() for name, value in loaded.state_dict().items()}
    plan = judged(kind, lambda: load_adapter(loaded, path))
    if plan is None:
        assert not adapters(loaded)
        assert all(p.requires_grad for p in loaded.parameters())
        assert loaded.state_dict().keys() == before.keys()
        assert all(torch.equal(value, before[key]) for key, value in loaded.state_dict().items())
        return False
    trained = {name: p for name, p in loaded.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == plan.num_trainable
    with safe_open(str(path), framework='pt') as file:
        assert set(file.keys()) - {PLAN_KEY, DIGESTS_KEY} == trained.keys()
        for key, parameter in trained.items():
            assert torch.equal(parameter, file.get_tensor(key).to(parameter.dtype))
    assert torch.isfinite(loaded(images(2)[0])).all()
    return True


def test_damaged_adapter_file_is_refused_or_the_same(files: list[bytes], tmp_path: Path):
    path = tmp_path / 'adapter.safetensors'
    meanings = set()
    for content in files:
        replace(path, content)
        file = read_adapter(path)
        meanings.add(meaning(file))

    def check_bytes(content: bytes) -> None:
        replace(path, content)
        file = judged('adapter file, bytes', lambda: read_adapter(path))
        if file is not None:
            assert meaning(file) in meanings
            load('adapter file, loaded', path)

    @FUZZ
    @given(damaged_bytes(files, most_at=3000))
    def check(content: bytes) -> None:
        check_bytes(content)

    @FUZZ
    @given(st.data())
    def check_header(data: st.DataObject) -> None:
        content = data.draw(st.sampled_from(files))
        (size,) = struct.unpack('<Q', content[:8])
        header = json.loads(content[8 : 8 + size])
        text = data.draw(damaged_json([header])).encode('utf-8', 'surrogateescape')
        length = data.draw(st.sampled_from([len(text)] * 6 + [0, 1, 1 << 40, (1 << 64) - 1]))
        check_bytes(struct.pack('<Q', length) + text + content[8 + size :])

    check()
    check_header()
    for content in files:
        check_bytes(content)
    assert_both('adapter file, bytes')


def meaning(file: Any) -> str:
    """All that a file says, as text."""
    values = {key: (str(t.dtype), t.tolist()) for key, t in sorted(file.tensors.items())}
    base = (sorted(file.digests.items()), file.carried, file.beside)
    return repr((file.plan, values, file.metrics, base))


def test_forged_adapter_file_is_refused_or_loaded_as_it_says(files: list[bytes], tmp_path: Path):
    path = tmp_path / 'adapter.safetensors'
    originals = [contents(path, content) for content in files]

    @FUZZ
    @given(st.sampled_from(originals), st.data())
    def check(original: tuple[dict[str, Tensor], dict[str, str]], data: st.DataObject) -> None:
        tensors, metadata = dict(original[0]), dict(original[1])
        if data.draw(st.booleans()):
            record, bits = unpack_text(PLAN_MARK, tensors[PLAN_KEY])
            tensors[PLAN_KEY] = pack_text(PLAN_MARK, data.draw(damaged_values([record])), bits)
        if data.draw(st.booleans()) and tensors:
            key = data.draw(st.sampled_from(sorted(tensors)))
            tensors |= data.draw(changed(key, tensors))
        if data.draw(st.booleans()):
            key = data.draw(st.sampled_from([*sorted(metadata), 'other']))
            metadata[key] = data.draw(st.text(max_size=8) | JUNK.map(json.dumps))
        tensors = {key: value for key, value in tensors.items() if value is not None}
        if data.draw(st.integers(0, 9)):
            metadata['digest'] = digest_of(metadata, tensors)
        try:
            content = save(tensors, metadata)
        except Exception:  # not what a file can hold
            return
        replace(path, content)
        load('adapter file, forged', path)

    check()
    assert_both('adapter file, forged')


@st.composite
def changed(draw: Any, key: str, tensors: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """What becomes of one tensor: gone, renamed, of another type, shape or value."""
    value = tensors[key]
    what = draw(st.sampled_from(['drop', 'rename', 'type', 'cut', 'flat', 'wide', 'nan', 'add']))
    if what == 'drop':
        return {key: None}
    if what == 'rename':
        return {key: None, key.upper(): value}
    if what == 'type':
        return {key: value.to(draw(st.sampled_from(DTYPES)))}
    if what == 'cut':
        return {key: value[:-1].clone()}
    if what == 'flat':
        return {key: value.reshape(-1).clone()}
    if what == 'wide':
        return {key: value[None].clone()}
    if what == 'nan':
        real = value if value.is_floating_point() else value.float()
        return {key: torch.full_like(real, draw(st.sampled_from([float('nan'), float('inf')])))}
    return {draw(st.sampled_from(['other', key + '2', 'cls_token', ''])): value.clone()}


def contents(path: Path, content: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    replace(path, content)
    with safe_open(str(path), framework='pt') as file:
        return {key: file.get_tensor(key).clone() for key in file.keys()}, file.metadata()  # noqa: SIM118
