"""C++ for what a step calls many times, compiled where it is first used.

`module.cpp` names its parts; `core.adapters.native_linear` says when it is taken.
"""

from .building import Building, NativeError, built_file, is_built, load_native

__all__ = ['Building', 'NativeError', 'built_file', 'is_built', 'load_native']
