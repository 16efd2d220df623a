"""A config for a user's own images and masks.

`wanted` is what the user says, `models` gives the backbone under its head, `listing` the splits,
`text` and `run_text` write `facts` as a config in `code`, `verification` tries it, `telling` says
what was seen. `command` joins them with what `cdra_mm.data.own` finds in the folders.
"""

from .command import new_config
from .wanted import Wanted

__all__ = ['Wanted', 'new_config']
