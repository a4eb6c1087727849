"""Running a job: `tessera job=NAME key=value …`, and everything that prints a configuration instead."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import hpc
from hpc.cli.arguments import Parser
from hpc.cli.folders import config_folders
from hpc.errors import EXIT_DONE, ConfigError
from hpc.terminal import say, say_data, visible


def main(arguments: Sequence[str]) -> int:
    """Run, sweep, or show; return the exit code."""
    given = _read(arguments)
    if given.version:
        say(f"tessera {hpc.__version__}")
        return EXIT_DONE
    folders = config_folders(given.config_dir)
    if given.help or not arguments:
        from hpc.cli.help import help_text

        say(help_text(given.overrides, folders))
        return EXIT_DONE
    if given.shell_completion:
        from hpc.cli import hydra_api

        hydra_api.complete(given.overrides, folders)
        return EXIT_DONE
    if given.cfg and given.multirun:
        msg = "--cfg shows one configuration; leave out --multirun and its lists of values"
        raise ConfigError(msg)
    if given.cfg:
        return _show(given, folders)
    if given.resolve or given.package:
        msg = "--resolve and --package belong to --cfg; add --cfg job"
        raise ConfigError(msg)
    if given.multirun:
        from hpc.cli.sweep import sweep

        return sweep(given.overrides, folders, Path.cwd())
    return run(given.overrides, folders)


def run(overrides: Sequence[str], folders: Sequence[Path]) -> int:
    """Compose, check and start one job."""
    from hpc.cli.compose import compose_run
    from hpc.identity import refuse_others
    from hpc.launch.start import start
    from hpc.rundir import RunDir
    from hpc.settings import SlurmCluster

    composed = compose_run(overrides, folders, Path.cwd())
    cluster = composed.settings.cluster
    if isinstance(cluster, SlurmCluster):
        from hpc.launch.already import nothing_to_do, refuse_if_submitted
        from hpc.launch.slurm import require_acceptable

        if cluster.dry_run:
            from hpc.launch.plan import dry_run

            return dry_run(composed.settings)
        if (code := nothing_to_do(composed.settings.run.dir)) is not None:
            RunDir.prepare(composed.settings.run.dir, composed.mapping)  # unless something else was asked for
            return code
        refuse_if_submitted(composed.settings.run.dir)
        require_acceptable(cluster, 1, composed.settings.run.dir)
    settings = composed.settings
    directory = RunDir.prepare(settings.run.dir, composed.mapping, lambda old: refuse_others(old, settings))
    return start(directory.path, composed.mapping["job"]["name"], cluster)


def _show(given: argparse.Namespace, folders: Sequence[Path]) -> int:
    """Print the composed configuration, or a section of it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from hpc.cli.compose import compose_config
    from hpc.cli.hints import explain
    from hpc.cli.hydra_api import only

    config = only(compose_config(given.overrides, folders, with_hydra=given.cfg != "job"), given.cfg)
    shown = OmegaConf.select(config, given.package) if given.package else config
    if shown is None:
        msg = f"--package {given.package}: the configuration has no such section; leave it out to see all"
        raise ConfigError(msg)
    try:
        section = OmegaConf.is_config(shown)
        text = OmegaConf.to_yaml(shown, resolve=given.resolve) if section else f"{visible(str(shown))}\n"
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error, given.overrides, folders)) from None
    say_data((f"# @package {given.package}\n{text}" if given.package else text).removesuffix("\n"))
    return EXIT_DONE


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("", "", add_help=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=("job", "hydra", "all"))
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("-p", "--package", default="")
    parser.add_argument("-cd", "--config-dir", action="append", default=[])
    parser.add_argument("-sc", "--shell-completion", action="store_true")
    return parser.read(arguments)
