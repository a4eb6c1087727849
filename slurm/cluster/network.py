"""A network of its own for every node: a bridge for the controller, and a namespace and a cable for each node."""

from __future__ import annotations

import subprocess
from contextlib import suppress

from cluster.layout import ClusterError, Layout

_SETTLE = 'echo "$0" > /proc/sys/kernel/hostname && mount -t tmpfs devcluster /dev/shm && exec "$@"'
"""A node has its own name and its own shared memory: MPI would talk past the network, also with the dead."""


def connect(layout: Layout) -> None:
    """Make the bridge and the nodes' namespaces."""
    bridge = _bridge(layout)
    _ip("link", "add", bridge, "type", "bridge")
    _ip("addr", "add", f"{layout.controller_address}/24", "dev", bridge)
    _ip("link", "set", bridge, "up")
    for node in layout.names:
        namespace, cable = _namespace(layout, node), _cable(layout, node)
        _ip("netns", "add", namespace)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", cable, "master", bridge, "up")
        _ip("-n", namespace, "addr", "add", f"{layout.address(node)}/24", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        _ip("-n", namespace, "link", "set", "lo", "up")


def disconnect(layout: Layout) -> None:
    """Take away whatever is there of the bridge and the namespaces."""
    for node in layout.names:
        with suppress(ClusterError):
            _ip("link", "del", _cable(layout, node))
        with suppress(ClusterError):
            _ip("netns", "del", _namespace(layout, node))
    with suppress(ClusterError):
        _ip("link", "del", _bridge(layout))


def inside(layout: Layout, node: str) -> list[str]:
    """Return the words before a command that make it run on a node, for as long as it lives."""
    if not layout.netns:
        return []
    # Not `ip netns exec`: it hides /sys/fs/cgroup, and slurmd would refuse to start.
    network = ["nsenter", f"--net=/run/netns/{_namespace(layout, node)}"]
    return [*network, "unshare", "--uts", "--ipc", "--mount", "sh", "-c", _SETTLE, node]


def switch(layout: Layout, node: str, state: str) -> None:
    """Pull the cable of a node (``down``) or plug it in again (``up``)."""
    _ip("link", "set", _cable(layout, node), state)


def _bridge(layout: Layout) -> str:
    return f"tess-{layout.tag}"


def _namespace(layout: Layout, node: str) -> str:
    return f"tess-{layout.tag}-{node}"


def _cable(layout: Layout, node: str) -> str:
    return f"ts{layout.tag}-{node}"


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"ip {' '.join(words)}: {done.stderr.strip()}; this needs root and network namespaces in the kernel"
        raise ClusterError(msg)
