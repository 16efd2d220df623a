"""Files of every format, made by the code of their time; see `make`."""

from pathlib import Path

PLAN = Path(__file__).with_name('plan.json')
