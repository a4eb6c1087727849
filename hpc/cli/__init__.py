"""The command line: what `tessera` and `python -m hpc` understand."""
