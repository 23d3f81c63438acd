"""vqformat: trained networks stored small, in ``.vqm`` files."""

__version__ = "0.1.0"
