"""cdra_mm: fine-tune vision transformers by touching half a percent of their weights.

An OpenMMLab extension that implements CDRA-SPT (CVPR 2025). `cdra_mm.core` is
the method on plain torch; `CDRAHook` and `CDRABackbone` put it into mmengine, and
`bases` makes our configs the bases of others.
Importing this package imports neither torch nor OpenMMLab.
"""

from importlib import import_module
from typing import Any

from .version import __version__

__all__ = ['CDRABackbone', 'CDRAHook', '__version__', 'bases']

_LAZY = {'CDRAHook': '.mm.hook', 'CDRABackbone': '.mm.backbone', 'bases': '.mm.packages'}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_LAZY[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
