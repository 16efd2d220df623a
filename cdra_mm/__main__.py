"""``python -m cdra_mm``: the program ``cdra``, for torchrun and where no program is installed."""

from cdra_mm.commands import main

if __name__ == '__main__':
    main()
