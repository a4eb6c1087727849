"""``python -m hpc`` is the `tessera` command."""

import sys

from hpc.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
