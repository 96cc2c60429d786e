"""``python -m snnfast``: the command line (see cli.py)."""

import sys

from snnfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
