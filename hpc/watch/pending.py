"""Why a job waits in SLURM's queue, and what its owner can do about it."""

from __future__ import annotations

from typing import Final

_REMEDIES: Final = (
    ("Resources", "it is next, when nodes become free; fewer nodes or a shorter cluster.time start sooner"),
    ("Priority", "others are before it; a shorter cluster.time or fewer nodes may fill a gap (squeue --start)"),
    ("Dependency", "it waits for another job (cluster.after, cluster.dependency)"),
    ("DependencyNeverSatisfied", "the job it waits for failed: tessera cancel, then resume without cluster.after"),
    ("JobArrayTaskLimit", "cluster.array_parallelism members run at a time: scontrol update ArrayTaskThrottle=N"),
    ("JobHeldUser", "you hold it: scontrol release JOB"),
    ("JobHeldAdmin", "the site holds it: ask the site why"),
    ("JobHoldMaxRequeue", "SLURM holds it because it came back too often: look at its log, then scontrol release JOB"),
    ("launch failed requeued held", "its nodes could not start it: tell the site, then scontrol release JOB"),
    ("job requeued in held state", "it came back on hold: look at its log, then scontrol release JOB"),
    ("BeginTime", "it starts at a time that was set; after a requeue SLURM waits two minutes by itself"),
    ("Licenses", "all licences are in use: see scontrol show licenses"),
    (
        "ReqNodeNotAvail",
        "its nodes are down, drained or reserved (sinfo -R); cluster.time may reach into a maintenance",
    ),
    ("Nodes required for job are DOWN", "see sinfo -R; other nodes: cluster.partition, cluster.nodelist"),
    ("NodeDown", "a node it needs is down: see sinfo -R; other nodes: cluster.nodelist"),
    ("Reservation", "it waits for cluster.reservation to begin: scontrol show reservation"),
    ("ReservationDeleted", "its reservation is gone: tessera cancel, then resume without cluster.reservation"),
    ("PartitionTimeLimit", "cluster.time is longer than the partition allows (sinfo -o '%P %l'): it will never start"),
    ("PartitionNodeLimit", "cluster.nodes is more than the partition allows (sinfo -o '%P %s'): it will never start"),
    ("PartitionDown", "the partition is closed: wait, or another cluster.partition (sinfo -s)"),
    ("PartitionInactive", "the partition is closed: wait, or another cluster.partition (sinfo -s)"),
    ("BadConstraints", "no node has what was asked for: change cluster.constraint, gres, mem or nodes, resume"),
    ("AccountNotAllowed", "cluster.account may not use this partition: tessera cancel, then resume with another"),
    ("QOSNotAllowed", "cluster.qos may not be used here: tessera cancel, then resume with another"),
    ("InvalidAccount", "give another cluster.account (sacctmgr show assoc user=$USER)"),
    ("InvalidQOS", "give another cluster.qos (sacctmgr show assoc user=$USER format=account,qos)"),
    ("Cleaning", "what is left of its last start is cleared away first"),
    ("FrontEndDown", "the machine that starts jobs is down: tell the site"),
    ("NonZeroExitCode", "it ended with an error"),
)
"""SLURM's reason, and what helps."""

_LIMITS: Final = (
    ("PerUser", "of one user (sacctmgr show qos): it starts when others of your jobs have ended"),
    ("PerAccount", "of your account (sacctmgr show qos): it starts when other jobs of the account have ended"),
    ("PerJob", "of one job (sacctmgr show qos): ask for less, or it will never start"),
    ("PerNode", "of one node (sacctmgr show qos): ask for less of each node, or it will never start"),
    ("Minutes", "of computing time: the account has used up its share (sreport, or ask the site)"),
    ("Billing", "of computing time: the account has used up its share (sreport, or ask the site)"),
    ("Wall", "of a job's length: a shorter cluster.time"),
    ("", "of the account or quality of service (sacctmgr show assoc, show qos): wait for other jobs, or ask for less"),
)
"""Which limit a reason that begins with QOS, Assoc or Max names, by a word in it."""


def remedy(reason: str, job: str = "JOB") -> str:
    """Return what helps a job that waits for this reason, empty if nothing is known.

    Parameters
    ----------
    reason
        SLURM's word, possibly with details behind a comma.
    job
        Its name, for commands that can be typed as they stand.
    """
    return _remedy(reason).replace("release JOB", f"release {job}")


def _remedy(reason: str) -> str:
    word = reason.strip("() ").partition(",")[0].strip()
    if (known := dict(_REMEDIES).get(word)) is not None:
        return known
    if word.startswith(("QOS", "Assoc", "MaxJob", "MaxNode", "MaxCpu", "MaxMem")):
        kind = next(text for sign, text in _LIMITS if sign in word)
        return f"it has reached a limit {kind}"
    return next((text for sign, text in _REMEDIES if " " in sign and word.startswith(sign)), "")
