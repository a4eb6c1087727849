"""A real SLURM cluster on one machine, for tests and for trying things out; see ``slurm/devcluster``."""
