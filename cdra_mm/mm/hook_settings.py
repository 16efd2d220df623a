"""The settings of `CDRAHook`: the method that they give, and whether a checkpoint has the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from mmengine.logging import MMLogger

from cdra_mm.core.adapters.small_base import check_base_dtype
from cdra_mm.errors import CheckpointError, ConfigError
from cdra_mm.methods import CDRA, Full, Method, find_method, make_method
from cdra_mm.methods.cdra import settings_beside

__all__ = ['check_base_setting', 'check_same_settings', 'method_of']


def method_of(
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    statistic: str | None = None,
    *,
    planned: bool = False,
) -> Method:
    """The method; of the settings beside it, it gets those it has too (a budget).

    Args:
        config: ``dict(type=name, **settings)``; the type is ``cdra`` where it has none.
        settings: Settings of ``cdra`` that stand beside it.
        statistic: See `settings_beside`.
        planned: Whether a plan is given. It does not hold where factors begin: at random then, but
            where a start is asked for.

    Raises:
        ConfigError: If a setting is unknown or out of range.
    """
    if isinstance(config, Mapping):  # otherwise `find_method` says what it has to be
        config = {'type': 'cdra', **config}
    known = {field.name for field in fields(CDRA)}
    own = {field.name for field in fields(find_method(config))} & known
    unused = {key: value for key, value in settings.items() if key not in own}
    if unused:
        make_method({'type': 'cdra', **unused})  # refuses what nobody has, or nobody takes
        MMLogger.get_current_instance().info(
            f'{", ".join(sorted(unused))}: settings of cdra, not used by {config["type"]}'
        )
    shared = {key: value for key, value in settings.items() if key in own}
    given = {**shared, **config}
    if find_method(given) is CDRA:
        given = settings_beside(given, statistic)
    method = make_method(given)
    if planned and isinstance(method, CDRA) and given.get('start') is None:
        return replace(method, start='random')
    return method


def check_base_setting(base_dtype: str | None, method: Method, save_base: bool) -> None:
    """Refuses a small precision of the base that contradicts other settings.

    Raises:
        ConfigError: Names them.
    """
    check_base_dtype(base_dtype)
    if base_dtype is None:
        return
    if isinstance(method, Full):
        raise ConfigError(
            f'base_dtype={base_dtype!r}: the method {method.name!r} trains the whole backbone, no '
            'weight is frozen; leave base_dtype out, or choose another method'
        )
    if save_base:
        raise ConfigError(
            f'base_dtype={base_dtype!r}, save_base=True: the run has no base in full precision to '
            'store; leave one of them out'
        )


def check_same_settings(asked: Mapping[str, Any], recorded: Mapping[str, Any]) -> None:
    """Refuses to go on from a checkpoint with other settings than it was made with.

    Raises:
        CheckpointError: Names the first setting that differs, the method before all others.
    """
    # What is not written is what it was before there was the setting; see `Method.added`.
    asked, recorded = _with_unwritten(asked), _with_unwritten(recorded)
    differ = sorted(
        key for key in asked.keys() | recorded.keys() if asked.get(key) != recorded.get(key)
    )
    if differ:
        key = 'method' if 'method' in differ else differ[0]
        made = f'with {key}={recorded[key]!r}' if key in recorded else f'without {key}'
        says = f'says {asked[key]!r}' if key in asked else 'leaves it at its default'
        raise CheckpointError(
            f'the checkpoint was made {made}, the config {says}: use the settings of the '
            'checkpoint, or start a new run in another work directory'
        )


def _with_unwritten(settings: Mapping[str, Any]) -> dict[str, Any]:
    unwritten: dict[str, Any] = {'head_iters': 0}
    if settings.get('method') == CDRA.name:
        unwritten |= {f'method.{name}': value for name, value in CDRA.added.items()}
    return {**unwritten, **settings}
