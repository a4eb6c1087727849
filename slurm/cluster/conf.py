"""The configuration files of a cluster, as text."""

from __future__ import annotations

import socket

from cluster.layout import Layout

_COMMON = """\
ClusterName=devcluster
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for cred_expire before it may start again: 120 s unless said otherwise, 5 s at least.
AuthInfo=socket={munge},cred_expire=5
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/log/slurmctld.log
SlurmdLogFile={directory}/log/slurmd-%n.log
# More CPUs than the machine has, no cgroups, no binding: the daemons must run anywhere.
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PropagateResourceLimits=NONE
# Failures have to be noticed within a test, not within a night.
KillWait=5
SlurmdTimeout=6
MessageTimeout=5
ReturnToService=2
SchedulerParameters=bf_interval=2,sched_interval=2
JobCompType=jobcomp/filetxt
JobCompLoc={directory}/jobcomp.txt
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
"""

_PARTITIONS = """\
PartitionName=low Nodes=ALL Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=8
PartitionName=high Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""

_ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={address}
AccountingStoragePort={port}
# With munge, the pass word is the socket; AuthInfo does not count for this connection.
AccountingStoragePass={munge}
"""

_SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={munge}
DbdHost={host}
DbdAddr={address}
DbdPort={port}
SlurmUser=root
LogFile={directory}/log/slurmdbd.log
PidFile={directory}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
"""


def slurm_conf(layout: Layout) -> str:
    """Return the text of ``slurm.conf``."""
    common = _COMMON.format(
        host=_hostname(),
        address=layout.controller_address,
        port=layout.port("slurmctld"),
        munge=layout.munge_socket,
        directory=layout.directory,
    )
    accounting = (
        _ACCOUNTING.format(address=layout.controller_address, port=layout.port("slurmdbd"), munge=layout.munge_socket)
        if layout.accounting
        else ""
    )
    nodes = "".join(
        f"NodeName={name} NodeHostname={name if layout.netns else _hostname()} NodeAddr={layout.address(name)} "
        f"Port={layout.port(name)} CPUs=4 RealMemory=4000 State=UNKNOWN\n"
        for name in layout.names
    )
    return common + accounting + nodes + _PARTITIONS


def slurmdbd_conf(layout: Layout) -> str:
    """Return the text of ``slurmdbd.conf``."""
    return _SLURMDBD.format(
        munge=layout.munge_socket,
        host=_hostname(),
        address=layout.controller_address,
        port=layout.port("slurmdbd"),
        directory=layout.directory,
    )


def _hostname() -> str:
    return socket.gethostname().split(".")[0]
