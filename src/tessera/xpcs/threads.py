"""Keeping numpy's matrix products to one thread: chunks are what is shared out, and no sum may depend on threads."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def one_blas_thread() -> Any:
    """Return a context in which linear algebra runs on the calling thread alone."""
    return _controller().limit(limits=1, user_api="blas")
