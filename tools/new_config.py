"""`cdra new` for a checkout: python tools/new_config.py --help says what it does."""

from cdra_mm.commands import run_command

if __name__ == '__main__':
    run_command('new')
