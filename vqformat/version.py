"""The version of the package; those of the format are in ``format.container``."""

__version__ = "0.1.0"
