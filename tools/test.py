"""`cdra test` for a checkout: python tools/test.py --help says what it does."""

from cdra_mm.commands import run_command

if __name__ == '__main__':
    run_command('test')
