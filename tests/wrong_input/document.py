"""docs/wrong_input.md, made of the cases; ``python -m tests.wrong_input.document`` writes it."""

from __future__ import annotations

from pathlib import Path

from . import (  # noqa: F401  they fill the table
    data,
    files,
    models,
    own,
    own_data,
    peft_adapters,
    settings,
    tasks,
)
from .case import CASES

FILE = Path(__file__).resolve().parents[2] / 'docs' / 'wrong_input.md'
TITLES = (
    'Settings',
    'Plans',
    'Data sets and lists',
    'Images and labels',
    'Your own images and masks',
    'Predictions',
    'Checkpoints and adapter files',
    'Many tasks on one base',
    'Models and export',
    'Adapters of Hugging Face peft',
    'Archives',
)
HEAD = """# Wrong input

What you give, and what you get. A refusal is an error of this package (all derive from
`cdra_mm.core.CDRAError`) that names what was given, what was expected and what to do; the tools
print it as one line and end with exit code 2. It comes before any long work where it can, and
nothing on disk is overwritten or half written. The words between the dots stand in the message.

`python -m tests.wrong_input.document` writes this file from the cases in
[tests/wrong_input](../tests/wrong_input); a test provokes each of them. `make fuzz`
([tests/fuzz](../tests/fuzz)) tries thousands of damaged plans, adapter files, lists and settings
besides: each is refused in this way, or means what it says.
"""


def text() -> str:
    """The whole document."""
    parts = [HEAD]
    assert set(TITLES) == set(CASES)
    for title in TITLES:
        rows = '\n'.join(case.row for case in CASES[title])
        parts.append(f'## {title}\n\n| what you give | what you get |\n|---|---|\n{rows}\n')
    return '\n'.join(parts)


if __name__ == '__main__':
    FILE.write_text(text(), encoding='utf-8')
