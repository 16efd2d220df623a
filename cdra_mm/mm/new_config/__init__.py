"""A config for a user's own images and masks.

`models` gives the backbone under its head, `text` writes the config, `verification` tries it,
`command` joins them with what `cdra_mm.data.own` has found in the folders.
"""

from .command import Wanted, new_config

__all__ = ['Wanted', 'new_config']
