"""The command ``snnfast``."""

from snnfast.cli.entry import main

__all__ = ["main"]
