"""CDRA as a method of Hugging Face peft: importing this makes it known there.

Read in the order of the data: `planning` (from a model and its data to a config), `config`,
`tuner` (a config meets a model), `layer` (one adapted module), `files`, `weighted`.
"""

from .requirement import require_peft

require_peft()  # in one line, before an import of peft fails in another way

from .config import PEFT_TYPE, CdraConfig  # noqa: E402
from .layer import CdraLayer  # noqa: E402
from .planning import cdra_config, mean_loss  # noqa: E402
from .tuner import CdraModel, register  # noqa: E402

register()

__all__ = ['PEFT_TYPE', 'CdraConfig', 'CdraLayer', 'CdraModel', 'cdra_config', 'mean_loss']
