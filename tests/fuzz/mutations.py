"""Valid JSON and valid bytes, damaged in every way."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

NUMBERS = [0, 1, -1, 2, 3, 7, 8, 10**9, 1 << 63, 10**30, 10**400, -(10**30), 0.0, 0.5, 1.0, 2.0]
NUMBERS += [-0.5, 1e-320, 1e308, float('inf'), float('-inf'), float('nan')]
WORDS = [
    '',
    'weight',
    'blocks',
    'low_rank',
    'prompts',
    '0',
    'a b',
    '\x00',
    '\ud800',
    'é',
    '..',
    '/',
]
WORDS += ['blocks.0.attn.qkv.weight:q', 'blocks.9.mlp.fc1.weight', 'x' * 5000]

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(-3, 70),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=5),
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value; the first four of a long list of numbers."""
    found = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += places(inner, (*path, key))
    elif isinstance(value, list):
        for position, inner in enumerate(value[:4]):
            found += places(inner, (*path, position))
    return found


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@st.composite
def damaged_values(draw: Any, originals: list[Any]) -> Any:
    """A JSON value with one to three changes: deleted, replaced, swapped, repeated, added."""
    value = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        found = places(value)
        path = found[draw(st.integers(0, len(found) - 1))]
        if not path:
            continue
        owner, key = at(value, path[:-1]), path[-1]
        what = draw(
            st.sampled_from(['replace', 'nudge', 'delete', 'swap', 'repeat', 'add', 'rename'])
        )
        if what == 'delete':
            del owner[key]
        elif what == 'nudge' and type(owner[key]) is int:
            owner[key] += draw(st.sampled_from([-1, 1, 2]))
        elif what == 'swap':
            other = found[draw(st.integers(0, len(found) - 1))]
            inner = copy.deepcopy(at(value, other))
            owner[key] = inner
        elif what == 'repeat' and isinstance(owner, list):
            owner.append(copy.deepcopy(owner[key]))
        elif what == 'add' and isinstance(owner, dict):
            owner[draw(st.sampled_from(WORDS))] = draw(JUNK)
        elif what == 'rename' and isinstance(owner, dict):
            owner[draw(st.sampled_from([*WORDS, str(key).upper()]))] = owner.pop(key)
        else:
            owner[key] = draw(SCALARS if draw(st.booleans()) else JUNK)
    return value


@st.composite
def damaged_json(draw: Any, originals: list[Any]) -> str:
    """JSON text of such a value, or of a whole one, one time in three damaged as text too."""
    damage = draw(st.sampled_from([*['value'] * 8, 'spaces', 'text', 'twice', 'nested']))
    value = draw(st.sampled_from(originals))
    if damage == 'value':
        return json.dumps(draw(damaged_values(originals)))
    if damage == 'spaces':  # says the same
        return json.dumps(value, indent=draw(st.integers(0, 3)), sort_keys=draw(st.booleans()))
    text = json.dumps(value)
    if damage == 'nested':
        return '[' * draw(st.sampled_from([1, 2, 100_000])) + text
    if damage == 'twice':
        found = [i for i, character in enumerate(text) if character == '{']
        start = found[draw(st.integers(0, len(found) - 1))] + 1
        end = text.find(',', start)
        return text[:start] + text[start : end + 1] + text[start:] if end > 0 else text[:-1]
    return draw(damaged_bytes([text.encode()])).decode('utf-8', 'surrogateescape')


@st.composite
def damaged_bytes(draw: Any, originals: list[bytes], *, most_at: int | None = None) -> bytes:
    """Bytes cut, flipped, repeated, with others in between.

    Args:
        originals: Whole ones.
        most_at: Three in four changes are before this position, for example in a header.
    """
    content = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, 3))):
        size = len(content)
        near = most_at is not None and draw(st.integers(0, 3)) > 0
        position = draw(
            st.integers(0, max(0, min(size, most_at or size) - 1 if near else size - 1))
        )
        what = draw(st.sampled_from(['flip', 'flip', 'set', 'cut', 'drop', 'insert', 'repeat']))
        if what == 'flip' and size:
            content[position] ^= 1 << draw(st.integers(0, 7))
        elif what == 'set' and size:
            content[position] = draw(st.integers(0, 255))
        elif what == 'cut':
            del content[position:]
        elif what == 'drop':
            del content[position : position + draw(st.integers(1, 20))]
        elif what == 'insert':
            content[position:position] = draw(st.binary(max_size=8))
        else:
            content += content[position : position + 40]
    return bytes(content)
