"""Keeping linear algebra to one thread: chunks are what is shared out, and no sum may depend on threads.

LAPACK's eigenvalues, singular values and factors of matrices from some 50 rows on depend on their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Run the linear algebra of a block, or of a function that this decorates, on the calling thread alone."""
    with _controller().limit(limits=1, user_api="blas"):
        yield
