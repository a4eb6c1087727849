"""Where the time of a fit goes: a tree of phases, and JAX's own trace; nothing is recorded unless asked for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_NOTHING: Final = nullcontext()


@dataclass
class Phase:
    """One node of the tree: wall and CPU seconds spent in it, its parts included, and how often."""

    name: str
    calls: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    parts: dict[str, Phase] = field(default_factory=dict)

    def part(self, name: str) -> Phase:
        """Return the part of this name, which may be new."""
        return self.parts.setdefault(name, Phase(name))

    def as_dict(self) -> dict[str, Any]:
        """Return the tree as plain values; ``self`` is what none of the parts accounts for."""
        inner = sum(p.seconds for p in self.parts.values())
        return {
            "name": self.name,
            "calls": self.calls,
            "seconds": self.seconds,
            "self": self.seconds - inner if self.parts else self.seconds,
            "cpu": self.cpu,
            "parts": [p.as_dict() for p in self.parts.values()],
        }

    def lines(self, depth: int = 0) -> Iterator[str]:
        """Yield the tree as lines of text, indented."""
        name = "  " * depth + self.name
        yield f"{name:<32} {self.seconds:10.4f} s wall {self.cpu:10.4f} s CPU {self.calls:8d} x"
        for part in self.parts.values():
            yield from part.lines(depth + 1)


class _Tree:
    """The tree being recorded, by the thread that asked for it; other threads record nothing."""

    def __init__(self, root: Phase) -> None:
        self.root = root
        self.owner = threading.get_ident()
        self.stack = [self.root]

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        node = self.stack[-1].part(name)
        self.stack.append(node)
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            node.seconds += time.perf_counter() - wall
            node.cpu += time.process_time() - cpu
            node.calls += 1
            self.stack.pop()


_tree: _Tree | None = None


def phase(name: str) -> AbstractContextManager[None]:
    """Return a context that counts what happens in it under ``name``; costs next to nothing while nobody records."""
    tree = _tree
    return _NOTHING if tree is None or threading.get_ident() != tree.owner else tree.phase(name)


@contextmanager
def recorded(root: Phase | None = None, trace: Path | None = None) -> Iterator[Phase]:
    """Record the phases of this thread while the block runs.

    Parameters
    ----------
    root
        Tree to add to; None: a new one.
    trace
        Folder for a trace of the JAX profiler (TensorBoard and Perfetto read it); None: none is made.

    Yields
    ------
    Phase
        The root of the tree, complete when the block ends. CPU seconds are those of all threads of the process.
    """
    global _tree  # noqa: PLW0603 - one fit records at a time; handing the tree through every function costs more
    outer, tree = _tree, _Tree(Phase("fit") if root is None else root)
    stop = _start_trace(trace) if trace is not None else None
    wall, cpu = time.perf_counter(), time.process_time()
    _tree = tree
    try:
        yield tree.root
    finally:
        _tree = outer
        tree.root.calls += 1
        tree.root.seconds += time.perf_counter() - wall
        tree.root.cpu += time.process_time() - cpu
        if stop is not None:
            stop()


def _start_trace(folder: Path) -> Callable[[], None]:
    import jax

    jax.profiler.start_trace(str(folder))
    return jax.profiler.stop_trace
