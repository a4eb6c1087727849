"""The programs a cluster needs, and the Debian packages that bring them."""

from __future__ import annotations

import os
import shutil
import subprocess

from cluster.layout import ClusterError

_ALWAYS = {
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
    "srun": "slurm-wlm",
    "munged": "munge",
}
_NETNS = {"ip": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
_ACCOUNTING = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server", "mariadb-install-db": "mariadb-server"}


def require(*, netns: bool, accounting: bool, install: bool) -> None:
    """Check that everything is there, and install it if asked to.

    Raises
    ------
    ClusterError
        Naming what is missing and how to get it.
    """
    if os.geteuid() != 0:
        msg = "a development cluster needs root: its daemons start jobs for users"
        raise ClusterError(msg)
    # Daemons live where a user's PATH may not look.
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    missing = _missing(netns=netns, accounting=accounting)
    if missing and install:
        _install(sorted(set(missing.values())))
        missing = _missing(netns=netns, accounting=accounting)
    if missing:
        packages = " ".join(sorted(set(missing.values())))
        msg = (
            f"not installed: {', '.join(sorted(missing))}; run slurm/devcluster up --install, "
            f"or: apt-get update && apt-get install {packages}"
        )
        raise ClusterError(msg)


def _missing(*, netns: bool, accounting: bool) -> dict[str, str]:
    wanted = _ALWAYS | (_NETNS if netns else {}) | (_ACCOUNTING if accounting else {})
    return {program: package for program, package in wanted.items() if shutil.which(program) is None}


def _install(packages: list[str]) -> None:
    if shutil.which("apt-get") is None:
        msg = f"--install works with apt-get only; install {', '.join(packages)} with this system's own tools"
        raise ClusterError(msg)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(
            ["apt-get", "-q", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            msg = f"apt-get {' '.join(words)} failed:\n{done.stdout[-2000:]}"
            raise ClusterError(msg)
