"""slurmdbd on a MariaDB of its own, reached by a socket only."""

from __future__ import annotations

import os
import subprocess

from cluster import daemons
from cluster.conf import slurmdbd_conf
from cluster.layout import Layout


def start(layout: Layout) -> None:
    """Make the database, and start the server and slurmdbd."""
    data, server_socket = layout.directory / "mysql", layout.directory / "mysql.sock"
    subprocess.run(
        [
            "mariadb-install-db",
            "--no-defaults",
            f"--datadir={data}",
            "--user=root",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    daemons.start(
        layout,
        "mariadbd",
        [
            "mariadbd",
            "--no-defaults",
            f"--datadir={data}",
            f"--socket={server_socket}",
            f"--pid-file={layout.directory / 'mariadbd.pid'}",
            "--skip-networking",
            "--innodb-lock-wait-timeout=900",  # what slurmdbd insists on
            "--user=root",
        ],
    )
    daemons.wait_until(server_socket.exists, 30, f"mariadbd did not start; see {layout.failed_log}")
    file = layout.directory / "slurmdbd.conf"
    file.touch(mode=0o600)
    file.write_text(slurmdbd_conf(layout), encoding="utf-8")
    daemons.start(layout, "slurmdbd", ["slurmdbd", "-D"], {"MYSQL_UNIX_PORT": str(server_socket)})
    daemons.wait_until(lambda: _knows_cluster(layout), 30, f"slurmdbd did not start; see {layout.failed_log}")


def _knows_cluster(layout: Layout) -> bool:
    """Register the cluster; an answer says that slurmdbd is ready."""
    done = subprocess.run(
        ["sacctmgr", "--immediate", "add", "cluster", "devcluster"],
        env={**os.environ, "SLURM_CONF": str(layout.conf)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode == 0 or "Already existing cluster" in done.stdout
