"""Whether the data of a config can be trained on: files, labels and sizes, looked at beforehand.

`check_config_data` reads everything; `check_data` is what every run looks at before it begins;
`watch` names the file when something goes wrong all the same.
"""

from .early_check import check_data
from .findings import DataReport
from .full_check import check_config_data
from .watch import WatchDataHook, watch

__all__ = ['DataReport', 'WatchDataHook', 'check_config_data', 'check_data', 'watch']
