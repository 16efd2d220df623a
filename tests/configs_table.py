"""The table of every config in configs/README.md: ``python -m tests.configs_table`` writes it.

Each config says in its docstring what it is, its data, its memory and its result; the table repeats
these words, so that they stand in one place.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / 'configs'
TABLE = CONFIGS / 'README.md'
HEAD = """# Configs

Made from the docstrings of the configs by `python -m tests.configs_table`.
`python tools/train.py configs/NAME` runs one; where its data lie is said by the environment
variable that starts its data column (see the file that it names).

"""
FIELD = re.compile(r'(?:^|(?<=\.) )(Command|Data|Memory|Time|Result):\s', re.MULTILINE)
GROUPS = {
    'cdra': 'Segmentation, and what a CPU can run',
    'cdra/paper': "The paper's own protocol",
    'vtab': 'VTAB-1k',
    'fgvc': 'FGVC',
}


def fields(path: Path) -> dict[str, str]:
    """A config's docstring, in parts: its first sentence under ``what``, the others by name."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')))
    assert text, f'{path} has no docstring'
    first, *rest = FIELD.split(text)
    found = {'what': first}
    found |= dict(zip(rest[::2], rest[1::2], strict=True))
    return {key: ' '.join(value.split()) for key, value in found.items()}


def sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    return re.split(r'(?<=[^.\d])\.\s|\. [A-Z(]', text + ' ')[0].strip(' .').replace('|', '\\|')


def render() -> str:
    """The text of configs/README.md."""
    parts = [HEAD]
    for folder, title in GROUPS.items():
        rows = [
            f'## {title}\n',
            '| config | what | data | memory | result |',
            '|---|---|---|---|---|',
        ]
        for path in sorted((CONFIGS / folder).glob('*.py')):
            found = fields(path)
            cells = [sentence(found.get(key, '')) for key in ('what', 'Data', 'Memory', 'Result')]
            name = path.relative_to(CONFIGS)
            rows.append(f'| [`{name}`]({name}) | {" | ".join(cells)} |')
        parts.append('\n'.join(rows) + '\n\n')
    return ''.join(parts).rstrip() + '\n'


if __name__ == '__main__':
    TABLE.write_text(render(), encoding='utf-8')
