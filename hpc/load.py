"""From the ``job`` section of a configuration to the job object, where it is composed and on every rank."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from hpc.errors import ConfigError, nearest
from hpc.job import Job
from hpc.options import build

ENGINE_KEYS = frozenset({"_target_", "name"})
"""Keys of the ``job`` section that belong to the engine; all others are fields of the job's ``Options``."""


def job_options(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of the ``job`` section that becomes the job's ``Options``."""
    return {key: value for key, value in section.items() if key not in ENGINE_KEYS}


def job_class(section: Mapping[str, Any]) -> type[Job]:
    """Import the class that ``job._target_`` names.

    Parameters
    ----------
    section
        The ``job`` section of the configuration.

    Returns
    -------
    type
        A subclass of `hpc.job.Job`.

    Raises
    ------
    hpc.errors.ConfigError
        If the target is missing, cannot be imported, or is no job.
    """
    target = section.get("_target_")
    if not isinstance(target, str) or "." not in target:
        msg = f"job._target_: must be the dotted name of a Job class, not {target!r}; choose with job=NAME"
        raise ConfigError(msg)
    module_name, _, class_name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(_not_importable(section, module_name, error)) from error
    except (TypeError, ValueError) as error:  # of importlib: a relative name, or one that is no name at all
        if module_name.strip(".") and not module_name.startswith(".") and "\0" not in module_name:
            raise
        msg = f"job._target_: {target!r} is no dotted name of a class; choose with job=NAME"
        raise ConfigError(msg) from error
    found = getattr(module, class_name, None)
    if found is None:
        jobs = [n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, Job) and v is not Job]
        msg = f"job._target_: module {module_name!r} has no {class_name!r}; {nearest(class_name, jobs)}"
        raise ConfigError(msg)
    if not (isinstance(found, type) and issubclass(found, Job)):
        msg = f"job._target_: {target} is no subclass of hpc.Job; name a class that implements a workload"
        raise ConfigError(msg)
    return found


def load_job(section: Mapping[str, Any]) -> Job:
    """Build the job that the ``job`` section describes.

    Raises
    ------
    hpc.errors.ConfigError
        If the target cannot be loaded or an option has a wrong name, type or value.
    """
    cls = job_class(section)
    return cls(build(cls.Options, job_options(section)))


def _not_importable(section: Mapping[str, Any], module: str, error: ModuleNotFoundError) -> str:
    missing = error.name or str(error)
    if module == missing or module.startswith(f"{missing}."):
        return f"job._target_: there is no module {missing!r}; install the package that brings this workload"
    remedy = f"pip install {missing.partition('.')[0]}"
    if missing.partition(".")[0] in {"jax", "torch", "safetensors"}:
        extra = "jax" if missing.startswith("jax") else "torch"
        remedy = f"pip install 'tessera-hpc[{extra}]'"
    name = section.get("name", module)
    return f"job {name!r} needs the Python module {missing!r}, which is not installed: {remedy}"
