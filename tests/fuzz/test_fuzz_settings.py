"""Random settings: taken exactly where a plain table says that they are valid."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdra_mm.methods import METHODS, make_method

from .effort import FUZZ, assert_both, judged
from .mutations import JUNK, NUMBERS

LARGEST = (1 << 63) - 1


def count(least: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= LARGEST


def number(fits: Callable[[float], bool]) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        small = type(value) is float and math.isfinite(value) or count(-LARGEST)(value)
        return small and fits(value)

    return check


def texts(value: Any) -> bool:
    return type(value) in (list, tuple) and all(type(entry) is str for entry in value)


def one_of(*choices: Any) -> Callable[[Any], bool]:
    return lambda value: any(value == c and type(value) is type(c) for c in choices)


def optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


BUDGETS = ('gamma', 'num_sensitive', 'budget_params', 'budget_percent')
ROLES = lambda value: type(value) is str or (texts(value) and len(value) > 0)  # noqa: E731
# By setting, and by method and setting where methods differ.
VALID: dict[Any, Callable[[Any], bool]] = {
    'gamma': optional(number(lambda v: 0 < v <= 1)),
    'num_sensitive': optional(count(1)),
    'budget_params': optional(count(1)),
    'budget_percent': optional(number(lambda v: 0 < v <= 100)),
    'rank_rule': optional(lambda v: one_of('eq7', 'count')(v) or count(1)(v)),
    'rank_alpha': number(lambda v: v > 0),
    'allocation': optional(one_of('scores', 'energy', 'descent')),
    'max_rank': count(1),
    'start': optional(one_of('random', 'gradient')),
    'min_rank': count(0),
    'beta': number(lambda v: v >= 1),
    ('cdra', 'beta'): number(lambda v: v > 0),
    'compete': ROLES,
    'case1': one_of(True, False),
    'case2': one_of(True, False),
    'alpha': number(lambda v: v >= 1),
    ('lora', 'alpha'): number(lambda v: v > 0),
    ('dora', 'alpha'): number(lambda v: v > 0),
    ('apla', 'seed'): count(0),
    'partial_size': optional(count(1)),
    'frozen_blocks': optional(count(0)),
    'biases': one_of(True, False),
    'lora_rank': count(1),
    'size_ratio': number(lambda v: v > 0),
    'quadrant': lambda v: (
        one_of('10', '00', '11', '01')(v) or (count(0)(v) and v in (10, 0, 11, 1))
    ),
    'rank': count(1),
    'dropout': number(lambda v: 0 <= v < 1),
    'targets': ROLES,
    'k': count(1),
    'loss': one_of('supervised_contrastive', 'task'),
    'num_blocks': count(1),
    'num_layers': count(2),
    'bottleneck': count(1),
    'num_prompts': count(1),
}
HOOK: dict[str, Callable[[Any], bool]] = {
    'num_samples': count(1),
    'batch_size': optional(count(1)),
    'statistic': optional(one_of('per_sample', 'per_batch', 'summed')),
    'also_train': lambda v: type(v) is str or texts(v),
    'seed': count(0),
    'plan': optional(lambda v: type(v) is str and len(v) > 0 and '\0' not in v),
    'save_base': one_of(True, False),
    'keep_scores': one_of(False, 'masks', 'all'),
    'score_dtype': one_of('float32', 'bfloat16'),
    'score_device': optional(one_of('cpu')),
    'head_iters': count(0),
    'base_dtype': optional(one_of('int8')),
    'compile': lambda v: type(v) is bool or v == {},
}
WORDS = [
    'int8',
    'all',
    'q',
    'eq7',
    'count',
    'task',
    '10',
    '01',
    'per_batch',
    'per_sample',
    'a lot',
    'matrices',
    'energy',
    'descent',
    'gradient',
]
VALUES = st.one_of(
    JUNK,
    st.sampled_from([*NUMBERS, *WORDS]),
    st.sampled_from([['q', 'v'], ('fc1',), ['q', 3], b'x', 1j, object(), {1}, range(3), [[]]]),
    st.integers(1, 12),
    st.floats(0, 1),
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def is_valid(name: str, settings: dict[str, Any]) -> bool:
    """Whether a method takes these settings, by the tables above."""
    known = {field.name for field in fields(METHODS[name])}
    checks = {key: VALID.get((name, key), VALID.get(key)) for key in settings}
    budgets = [key for key in BUDGETS if settings.get(key) is not None]
    fixed = isinstance(settings.get('rank_rule'), int) and settings.get('rank_alpha', 1) != 1
    return settings.keys() <= known and len(budgets) <= 1 and not fixed and all(
        checks[key](value) for key, value in settings.items()
    ) and goes_with_allocation(name, settings)  # fmt: skip


def goes_with_allocation(name: str, settings: dict[str, Any]) -> bool:
    """Whether nothing is set that the allocation of cdra does not use."""
    if name != 'cdra':
        return True
    changed = {
        f.name for f in fields(METHODS[name]) if settings.get(f.name, f.default) != f.default
    }
    of_scores = changed - {'allocation', 'max_rank', 'start', 'compete', *BUDGETS[2:]}
    allocation = settings.get('allocation') or ('scores' if of_scores else 'descent')
    if allocation != 'scores':  # 'eq7' is what an instance of it holds
        return of_scores <= ({'rank_rule'} if settings.get('rank_rule') == 'eq7' else set())
    return 'max_rank' not in changed and settings.get('start') != 'gradient'


def listed() -> list[str]:
    """Methods whose settings stand in the table; a test of its own says which do not."""
    return [name for name, cls in METHODS.items() if not unlisted(name)]


def unlisted(name: str) -> list[str]:
    keys = [field.name for field in fields(METHODS[name])]
    return [key for key in keys if key not in VALID and (name, key) not in VALID]


# Its settings depend on each other: only that nothing crashes, and what is taken stays so.
WITHOUT_TABLE = {'noah'}


@pytest.mark.parametrize('name', METHODS)
def test_table_of_this_file_holds_every_setting(name: str):
    assert bool(unlisted(name)) == (name in WITHOUT_TABLE)


def test_settings_of_a_method_are_taken_where_they_are_valid():
    @FUZZ
    @given(st.data())
    def check(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(METHODS)))
        keys = [field.name for field in fields(METHODS[name])]
        names = st.sampled_from([*keys * 3, 'other', 'name', 'needs_scores', 'Rank', 3])
        settings = data.draw(st.dictionaries(names, VALUES, max_size=2))
        method = judged('method settings', lambda: make_method({'type': name, **settings}))
        if name not in WITHOUT_TABLE:
            assert (method is not None) == is_valid(name, settings), (name, settings)
        if method is not None:
            kept = {key: getattr(method, key) for key in keys}
            assert make_method({'type': name, **kept}) == method
            json.dumps(kept, allow_nan=False)
            for key, value in settings.items() if name not in WITHOUT_TABLE else ():
                unset = value is None or key == 'quadrant'
                alone = [value] if isinstance(value, str) else value
                assert unset or kept[key] in (value, alone) or list(value) == kept[key]

    check()
    assert_both('method settings')


def test_type_of_a_method_is_refused_unless_it_is_one():
    @FUZZ
    @given(VALUES, VALUES | st.sampled_from(list(METHODS)))
    def check(config: Any, name: Any) -> None:
        for given_config in (config, {'type': name}):
            method = judged('method type', lambda c=given_config: make_method(c))
            assert method is None or METHODS[given_config['type']] is type(method)

    check()
    assert_both('method type')


def test_settings_of_the_hook_are_taken_where_they_are_valid():
    pytest.importorskip('mmengine')
    from mmengine.config import Config

    from cdra_mm import CDRAHook
    from cdra_mm.mm.launch import prepare_config

    own = [field.name for field in fields(METHODS['cdra'])]

    @FUZZ
    @given(st.data())
    def check(data: st.DataObject) -> None:
        keys = st.sampled_from([*list(HOOK) * 3, *own, 'other', 'Gamma'])
        block = data.draw(st.dictionaries(keys, VALUES, max_size=3))
        name = data.draw(st.none() | st.sampled_from(listed()))
        if name is not None:
            block['method'] = {'type': name}
        hook = judged('hook settings', lambda: CDRAHook(**block))
        mine = {key: value for key, value in block.items() if key in HOOK}
        rest = {key: value for key, value in block.items() if key not in HOOK and key != 'method'}
        shared = {
            key: value for key, value in rest.items() if key in method_keys(name) and key in own
        }
        unused = {key: value for key, value in rest.items() if key not in shared}
        statistic = block.get('statistic')
        if name in (None, 'cdra') and statistic is not None and not shared.get('allocation'):
            shared['allocation'] = 'scores'
        valid = (
            all(HOOK[key](value) for key, value in mine.items())
            and is_valid(name or 'cdra', shared)
            and is_valid('cdra', unused)
        )
        if valid and shared.get('allocation') in ('energy', 'descent'):
            valid = block.get('statistic') is None
        if valid and block.get('base_dtype') is not None:
            valid = name != 'full' and not block.get('save_base')
        assert (hook is not None) == valid, block
        if hook is not None:
            settings = json.loads(json.dumps(hook.settings, allow_nan=False))
            assert settings == hook.settings  # or a resumed run would refuse its own checkpoint
        if all(plain(value) for value in block.values()):
            cfg = judged('cdra block', lambda: prepare_config(Config({'cdra': block})))
            assert (cfg is not None) == valid, block

    check()
    assert_both('hook settings')
    assert_both('cdra block')


def method_keys(name: str | None) -> set[str]:
    return {field.name for field in fields(METHODS[name or 'cdra'])}


def plain(value: Any) -> bool:
    """Whether mmengine's Config takes it as it is: it wants names for what it holds."""
    if isinstance(value, dict):
        return all(type(key) is str and key.isidentifier() for key in value)
    return value is None or isinstance(value, bool | int | float | str | list)


def test_block_that_is_no_dict_of_settings_is_refused():
    pytest.importorskip('mmengine')
    from mmengine.config import Config

    from cdra_mm.mm.launch import prepare_config

    @FUZZ
    @given(VALUES.filter(plain).filter(lambda v: not isinstance(v, dict)), st.booleans(),
           st.sampled_from(['type', 'priority', 'method', '_scope_']))  # fmt: skip
    def check(value: Any, whole: bool, key: str) -> None:
        block = value if whole else {key: value}
        cfg = judged('cdra block of any kind', lambda: prepare_config(Config({'cdra': block})))
        if cfg is not None and whole:
            assert value is None
        if cfg is not None and key == 'type' and not whole:
            raise AssertionError(f'type={value!r} is no hook of ours')
        if cfg is not None and key == 'priority' and not whole:
            assert value is None or 0 <= value <= 100 or value in ('LOW', 'NORMAL')

    check()
    assert_both('cdra block of any kind')
