"""`cdra analyze` for a checkout: python tools/analyze.py --help says what it does."""

from cdra_mm.commands import run_command

if __name__ == '__main__':
    run_command('analyze')
