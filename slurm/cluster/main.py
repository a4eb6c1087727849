"""The command line of ``slurm/devcluster``."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from cluster import accounting, daemons, network, packages
from cluster.conf import slurm_conf
from cluster.layout import ClusterError, Layout, load, plan

_START_SECONDS: Final = 30.0
_IDLE: Final = {"idle", "mixed", "allocated", "completing"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 with the complaint printed, or 3 if ``status`` finds no cluster."""
    given = _parser().parse_args(arguments)
    directory = given.directory.absolute()
    try:
        if given.command == "up":
            return _up(directory, given)
        if given.command == "down":
            return _down(directory)
        layout = load(directory)
        if layout is None:
            print(f"no cluster in {directory}; start one with: slurm/devcluster up", file=sys.stderr)
            return 3
        if given.command in {"cut", "mend"}:
            return _node(layout, given.command, given.node)
        return _env(layout) if given.command == "env" else _status(layout)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    default = Path(tempfile.gettempdir()) / "tessera-devcluster"
    shared.add_argument("--directory", type=Path, default=default, help=f"where its files are (default: {default})")
    parser = argparse.ArgumentParser(prog="slurm/devcluster", description="A real SLURM cluster on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", parents=[shared], help="start a cluster")
    up.add_argument("--nodes", type=int, default=4, help="how many nodes, of 4 CPUs each (default: 4)")
    up.add_argument("--netns", action="store_true", help="give each node its own network and host name")
    up.add_argument("--accounting", action="store_true", help="with slurmdbd and MariaDB, so that sacct works")
    up.add_argument("--install", action="store_true", help="install what is missing with apt-get")
    commands.add_parser("down", parents=[shared], help="end the cluster and remove every trace of it")
    commands.add_parser("status", parents=[shared], help="show daemons, nodes and jobs")
    commands.add_parser("env", parents=[shared], help="print what to export: eval $(slurm/devcluster env)")
    for name, text in (
        ("cut", "pull the network cable of a node (--netns)"),
        ("mend", "plug it in, start its slurmd if it is dead, and put the node back to work"),
    ):
        commands.add_parser(name, parents=[shared], help=text).add_argument("node")
    return parser


def _up(directory: Path, given: argparse.Namespace) -> int:
    start = time.monotonic()
    if not 1 <= given.nodes <= 64:
        msg = f"--nodes {given.nodes}: a machine carries 1 to 64 nodes"
        raise ClusterError(msg)
    if load(directory) is not None:
        msg = f"there is a cluster in {directory}; end it with: slurm/devcluster down --directory {directory}"
        raise ClusterError(msg)
    if directory.exists() and any(directory.iterdir()):
        msg = f"{directory} holds other files, which `down` would remove; name another --directory"
        raise ClusterError(msg)
    packages.require(netns=given.netns, accounting=given.accounting, install=given.install)
    layout = plan(directory, given.nodes, netns=given.netns, accounting=given.accounting)
    for folder in ("log", "state", "spool", "munge"):
        (directory / folder).mkdir(parents=True)
    layout.save()
    try:
        _start(layout)
    except BaseException:
        _keep_logs(layout)
        _down(directory)
        raise
    print(f"{given.nodes} nodes are up after {time.monotonic() - start:.1f} s: {directory}")
    print(f"use them with:  eval $({shlex.quote(sys.argv[0])} env --directory {shlex.quote(str(directory))})")
    return 0


def _start(layout: Layout) -> None:
    layout.conf.write_text(slurm_conf(layout), encoding="utf-8")
    _start_munge(layout)
    if layout.netns:
        network.connect(layout)
    if layout.accounting:
        accounting.start(layout)
    daemons.start(layout, "slurmctld", ["slurmctld", "-D"])
    for node in layout.names:
        daemons.start_slurmd(layout, node)
    complaint = f"the nodes are not ready after {_START_SECONDS:.0f} s; the daemons' logs are in {layout.failed_log}"
    daemons.wait_until(lambda: _ready(layout), _START_SECONDS, complaint)


def _start_munge(layout: Layout) -> None:
    folder = layout.munge_socket.parent
    key = folder / "key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    names = {"key-file": key, "socket": layout.munge_socket, "log-file": folder / "log"}
    names |= {"pid-file": folder / "pid", "seed-file": folder / "seed"}
    daemons.start(layout, "munged", ["munged", "--foreground", "--force", *(f"--{k}={v}" for k, v in names.items())])
    daemons.wait_until(layout.munge_socket.exists, 10, f"munged did not start; its log is in {layout.failed_log}")


def _ready(layout: Layout) -> bool:
    states = dict(line.split() for line in _slurm(layout, "sinfo", "-N", "-h", "-p", "low", "-o", "%N %T").splitlines())
    return len(states) == layout.nodes and set(states.values()) <= _IDLE


def _down(directory: Path) -> int:
    layout = load(directory)
    if layout is None:
        print(f"no cluster in {directory}")
        return 0
    # Jobs first: while the daemons live they know best what to end.
    with suppress(ClusterError):
        _slurm(layout, "scancel", "--user=root")
    daemons.stop_all(layout)
    if layout.netns:
        network.disconnect(layout)
    shutil.rmtree(directory)
    return 0


def _keep_logs(layout: Layout) -> None:
    shutil.rmtree(layout.failed_log, ignore_errors=True)
    shutil.copytree(layout.directory / "log", layout.failed_log)


def _env(layout: Layout) -> int:
    print(f"export SLURM_CONF={shlex.quote(str(layout.conf))}")
    return 0


def _status(layout: Layout) -> int:
    names = ["munged", *(["mariadbd", "slurmdbd"] if layout.accounting else []), "slurmctld", *layout.names]
    for name in names:
        pid = daemons.running(layout, name)
        print(f"{name:<10} {pid if pid is not None else 'NOT RUNNING'}")
    print(_slurm(layout, "sinfo", "-N", "-o", "%N %P %T %C %E"))
    print(_slurm(layout, "squeue", "-a", "-o", "%i %j %P %T %M %D %R"), end="")
    return 0


def _node(layout: Layout, command: str, node: str) -> int:
    if node not in layout.names:
        msg = f"no node {node!r}; there are {', '.join(layout.names)}"
        raise ClusterError(msg)
    if command == "cut" and not layout.netns:
        msg = "the nodes of this cluster share one network; start it with --netns to cut one off"
        raise ClusterError(msg)
    if layout.netns:
        network.switch(layout, node, "down" if command == "cut" else "up")
    if command == "mend":
        if daemons.running(layout, node) is None:
            daemons.start_slurmd(layout, node)
        daemons.wait_until(lambda: _is_back(layout, node), _START_SECONDS, f"{node} did not come back")
    return 0


def _is_back(layout: Layout, node: str) -> bool:
    state = _slurm(layout, "sinfo", "-N", "-h", "-p", "low", "-n", node, "-o", "%T").strip()
    if state in _IDLE:
        return True
    with suppress(ClusterError):  # refused while the node is still answering nobody
        _slurm(layout, "scontrol", "update", f"nodename={node}", "state=resume")
    return False


def _slurm(layout: Layout, *words: str) -> str:
    environment = {**os.environ, "SLURM_CONF": str(layout.conf)}
    done = subprocess.run(list(words), env=environment, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode and words[0] != "sinfo":
        msg = f"{' '.join(words)}: {done.stderr.strip()}"
        raise ClusterError(msg)
    return done.stdout
