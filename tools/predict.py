"""`cdra predict` for a checkout: python tools/predict.py --help says what it does."""

from cdra_mm.commands import run_command

if __name__ == '__main__':
    run_command('predict')
