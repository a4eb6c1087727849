"""What a cluster consists of and where its files are: one directory, described by ``cluster.json`` in it."""

from __future__ import annotations

import hashlib
import json
import random
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

_PORTS: Final = range(20000, 32000)
"""Below the range from which the kernel serves outgoing connections, so that a daemon finds its port again."""
_SUBNETS: Final = range(1, 250)


class ClusterError(Exception):
    """What is wrong, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A cluster.

    Attributes
    ----------
    directory
        Everything the cluster writes is below it.
    nodes
        How many nodes; they are called n1, n2, …
    netns, accounting
        Whether each node has its own network, and whether there is a slurmdbd.
    ports
        Of slurmctld, slurmdbd, and each slurmd.
    subnet
        Third number of the nodes' addresses 10.77.SUBNET.x; 0 without `netns`.
    """

    directory: Path
    nodes: int
    netns: bool
    accounting: bool
    ports: tuple[int, ...]
    subnet: int

    @property
    def names(self) -> list[str]:
        """The names of the nodes."""
        return [f"n{k + 1}" for k in range(self.nodes)]

    @property
    def conf(self) -> Path:
        """What SLURM_CONF has to say."""
        return self.directory / "slurm.conf"

    @property
    def failed_log(self) -> Path:
        """Where the daemons' logs are kept if the cluster cannot be started."""
        return self.directory.with_name(f"{self.directory.name}.failed-log")

    @property
    def munge_socket(self) -> Path:
        """Where this cluster's own munged listens."""
        return self.directory / "munge" / "socket"

    @property
    def tag(self) -> str:
        """What tells this cluster's network devices from another's; their names may have 15 letters only."""
        return hashlib.sha256(str(self.directory).encode()).hexdigest()[:6]

    @property
    def controller_address(self) -> str:
        """Where slurmctld is reached from every node."""
        return f"10.77.{self.subnet}.1" if self.netns else "127.0.0.1"

    def address(self, node: str) -> str:
        """Return the address of a node."""
        return f"10.77.{self.subnet}.{10 + self.names.index(node)}" if self.netns else "127.0.0.1"

    def port(self, daemon: str) -> int:
        """Return the port of slurmctld, slurmdbd or a node."""
        return self.ports[["slurmctld", "slurmdbd", *self.names].index(daemon)]

    def save(self) -> None:
        """Write ``cluster.json``."""
        record = {**asdict(self), "directory": str(self.directory)}
        (self.directory / "cluster.json").write_text(json.dumps(record, indent=1), encoding="utf-8")


def load(directory: Path) -> Layout | None:
    """Return the cluster of a directory, None if there is none."""
    try:
        record = json.loads((directory / "cluster.json").read_bytes())
    except FileNotFoundError:
        return None
    return Layout(**{**record, "directory": Path(record["directory"]), "ports": tuple(record["ports"])})


def plan(directory: Path, nodes: int, *, netns: bool, accounting: bool) -> Layout:
    """Lay out a cluster with ports and a subnet that nobody uses."""
    subnet = _free_subnet() if netns else 0
    return Layout(directory, nodes, netns, accounting, _free_ports(2 + nodes), subnet)


def _free_ports(number: int) -> tuple[int, ...]:
    found: list[int] = []
    candidates = random.sample(_PORTS, len(_PORTS))  # chance keeps two clusters that start together apart
    while len(found) < number:
        if not candidates:
            msg = f"no {number} free TCP ports between {_PORTS.start} and {_PORTS.stop}; stop what occupies them"
            raise ClusterError(msg)
        port = candidates.pop()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                continue
            try:
                probe.close()
                with socket.socket() as listener:
                    listener.bind(("0.0.0.0", port))  # noqa: S104 - slurmd listens on all addresses too
            except OSError:
                continue
        found.append(port)
    return tuple(found)


def _free_subnet() -> int:
    """Return a number for which this machine has no address 10.77.NUMBER.1."""
    for subnet in random.sample(_SUBNETS, len(_SUBNETS)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((f"10.77.{subnet}.1", 0))
            except OSError:
                return subnet
    msg = "all networks 10.77.x.0/24 are taken; take other clusters down with: slurm/devcluster down"
    raise ClusterError(msg)
