"""C++ for what a step calls many times, compiled where it is first used.

`copied_linear.cpp` is the node of the graph of `core.adapters.copied_linear`.
"""

from .building import Building, NativeError, built_file, is_built, load_native, loaded_native

__all__ = ['Building', 'NativeError', 'built_file', 'is_built', 'load_native', 'loaded_native']
