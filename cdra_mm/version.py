"""The release of this package; a file of its own, so that every floor can name it."""

__version__ = '0.1.0'
