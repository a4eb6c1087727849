"""``python -m hpc`` is the `tessera` command."""

import sys

# Python puts the working folder first, where a signal.py of the user's would take the place of the standard library's;
# the `tessera` command does without it. A checkout that is not installed is the one case in which it is needed.
if not sys.flags.safe_path and sys.path[0] != __file__.rpartition("/hpc/")[0]:
    del sys.path[0]

from hpc.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
