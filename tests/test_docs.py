"""The pages: what they link to is there, the site lists them all, generated tables are current."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from . import configs_table

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md'), *ROOT.glob('configs/*.md')])
LINK = re.compile(r'\[[^\]]*\]\(([^)\s]+)\)')
CODE = re.compile(r'```.*?```|`[^`\n]*`', re.DOTALL)
# Built by `make docs` from docstrings, not links to files.
ELSEWHERE = ('http://', 'https://', 'mailto:')


def anchors(page: Path) -> set[str]:
    """The names that a page's headings can be linked by."""
    titles = re.findall(
        r'^#+ +(.+)$', re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL), re.M
    )
    return {re.sub(r'[^\w\- ]', '', title.lower()).strip().replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(CODE.sub('', page.read_text(encoding='utf-8'))):
        if link.startswith(ELSEWHERE):
            continue
        path, _, anchor = link.partition('#')
        target = (page.parent / path) if path else page
        assert target.exists(), f'{page.name}: {link}'
        if anchor and target.suffix == '.md':
            assert anchor in anchors(target), f'{page.name}: {link}'


def test_the_site_lists_every_page():
    listed = set(re.findall(r': (\S+\.md)$', (ROOT / 'mkdocs.yml').read_text(), re.MULTILINE))
    there = {str(page.relative_to(ROOT / 'docs')) for page in (ROOT / 'docs').rglob('*.md')}
    assert listed == there


def test_commands_of_the_pages_exist():
    goals = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding='utf-8')
        for code in re.findall(r'```\n(.*?)```|`([^`\n]*)`', text, re.DOTALL):
            for line in ''.join(code).splitlines():
                if match := re.match(r'make ([a-z-]+)', line):
                    assert match[1] in goals, f'{page.name}: {line}'
                for tool in re.findall(r'(?<![\w/])tools/\w+\.(?:py|sh)', line):
                    assert (ROOT / tool).is_file(), f'{page.name}: {line}'


def test_readme_fits_on_a_page_and_says_early_how_to_install():
    lines = (ROOT / 'README.md').read_text(encoding='utf-8').splitlines()
    assert len(lines) <= 90
    titles = [line for line in lines if line.startswith('## ')]
    assert titles[0] == '## Installation'


def test_table_of_the_configs_is_current():
    assert configs_table.TABLE.read_text(encoding='utf-8') == configs_table.render(), (
        'run python -m tests.configs_table'
    )


def test_every_config_says_what_it_is():
    for folder in configs_table.GROUPS:
        for path in (configs_table.CONFIGS / folder).glob('*.py'):
            assert {'what', 'Command', 'Memory'} <= configs_table.fields(path).keys(), path
