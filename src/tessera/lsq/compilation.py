"""JAX as the fits use it: float64 without changing the caller's settings, and compiled code kept between processes."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
import time
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

_PREFIX: Final = ".process-"
_STALE: Final = 2 * 86400  # seconds; links take no room, so there is no hurry


def double() -> AbstractContextManager[Any]:
    """Return a context in which JAX computes in float64; other threads and the caller's own code are not affected."""
    import jax

    context: AbstractContextManager[Any] = jax.enable_x64(True)
    return context


def cache_folder() -> Path | None:
    """Return where compiled code is kept: $TESSERA_JAX_CACHE (empty: nowhere), else the user's cache folder."""
    chosen = os.environ.get("TESSERA_JAX_CACHE")
    if chosen is not None:
        return Path(chosen) if chosen else None
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tessera" / "jax"


@lru_cache(maxsize=1)
def use_persistent_cache() -> None:
    """Keep compiled code for later processes, unless the caller has chosen a folder himself.

    JAX writes an entry in place, so a rank could read what another has half written, and a killed one would leave it
    so. Each process therefore works on a folder of its own, filled with links to the common entries; its new entries
    are linked into the common folder when they are whole, which is atomic.
    """
    import atexit

    import jax

    config: Any = jax.config  # its options are not typed
    chosen = cache_folder()
    common = None if chosen is None else chosen / _processor()
    if common is None or config.jax_compilation_cache_dir is not None:
        return
    try:
        common.mkdir(parents=True, exist_ok=True)
        _sweep(common)
        own = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=common, ignore_cleanup_errors=True)
        _link(common, Path(own.name))
    except OSError:
        return  # a full or read-only home costs a compilation, not the fit
    config.update("jax_compilation_cache_dir", own.name)
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # Its entries hold absolute paths of the cache folder, which here differs from process to process.
    config.update("jax_persistent_cache_enable_xla_caches", "none")

    def publish() -> None:
        _link(Path(own.name), common)
        own.cleanup()

    atexit.register(publish)


def _processor() -> str:
    """Return a name for this kind of processor: code compiled for another may use instructions it lacks."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    features = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"


def _sweep(common: Path) -> None:
    """Remove the folders of processes that were killed: those nobody has touched for two days."""
    for folder in common.glob(f"{_PREFIX}*"):
        try:
            if time.time() - folder.stat().st_mtime > _STALE:
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            continue  # its own process, or another, was quicker


def _link(source: Path, target: Path) -> None:
    for entry in source.iterdir():
        if entry.name.endswith("-cache"):
            try:
                (target / entry.name).hardlink_to(entry)
            except OSError:
                continue  # another process was first, or the file system has no links
