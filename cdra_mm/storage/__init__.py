"""Files that are there whole or not at all, and strict readers of what users write.

Standard library only: what prepares data imports this without torch.
"""

from .leftovers import clear_leftovers, name_beside
from .regular_file import open_regular
from .strict_json import strict_json
from .writing import write_atomically, write_folder, write_text

__all__ = [
    'clear_leftovers',
    'name_beside',
    'open_regular',
    'strict_json',
    'write_atomically',
    'write_folder',
    'write_text',
]
