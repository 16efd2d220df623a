"""Names that users choose for what a model keeps as modules: its adapters, its tasks."""

from __future__ import annotations

from typing import Any

from torch import nn

__all__ = ['not_a_child_name']


def not_a_child_name(name: Any) -> str | None:
    """Why torch keeps no module under a name, None if it does.

    Returns:
        The rest of a sentence that begins with the name.
    """
    if not isinstance(name, str):
        return f'is a {type(name).__name__}: expected text'
    if not name:
        return 'is empty: expected some text'
    if '.' in name:
        return 'has a dot: use another'
    if hasattr(nn.ModuleDict(), name):
        return 'is one of torch.nn.ModuleDict: use another'
    return None
