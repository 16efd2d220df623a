"""A config for a user's own images and masks.

`options` is what the user says, `models` gives the backbone under its head, `split_lists` the
splits, `text` and `run_text` write `content` as a config in `code`, `verification` tries it,
`messages` says what was seen. `generation` joins them with what `cdra_mm.data.own` finds in the
folders.
"""

from .generation import new_config
from .options import NewConfigOptions

__all__ = ['NewConfigOptions', 'new_config']
