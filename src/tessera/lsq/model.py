"""A user's model, and which of its parameters each group of points has for itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessera.lsq.errors import ModelError, StartError


@dataclass(frozen=True, slots=True)
class Groups:
    """Parameters of which each group of points has its own, like contrast and offset per angle.

    Attributes
    ----------
    names
        The model's parameters that are not shared.
    row
        Row of x (shape (k, m)) that holds the number of each point's group, 0 … count-1.
    count
        How many groups there are.
    """

    names: tuple[str, ...]
    row: int
    count: int


@dataclass(frozen=True, slots=True)
class Model:
    """A function ``f(x, *parameters)`` with named parameters.

    Attributes
    ----------
    function
        Written with JAX operations; x has shape (m,) or (k, m), parameters are scalars, or arrays (m,) for those of
        a group. Its value at a point must depend on that point alone.
    arguments
        Names of its parameters.
    groups
        Which of them each group of points has for itself; None: all are shared.
    jacobian
        ``jacobian(x, *parameters)``, shape (m, p), in place of forward-mode differentiation; None: there is none.
    """

    function: Callable[..., Any]
    arguments: tuple[str, ...]
    groups: Groups | None = None
    jacobian: Callable[..., Any] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """One name per fitted parameter; those of groups are ``name[0]``, ``name[1]``, … ."""
        own = self.groups.names if self.groups else ()
        count = self.groups.count if self.groups else 0
        return tuple(
            name for a in self.arguments for name in ([f"{a}[{g}]" for g in range(count)] if a in own else [a])
        )

    def layout(self) -> NDArray[np.intp]:
        """Return the index of each fitted parameter, shape (groups, arguments): what each group's points see."""
        count = self.groups.count if self.groups else 1
        table = np.empty((count, len(self.arguments)), np.intp)
        at = 0
        for column, argument in enumerate(self.arguments):
            own = self.groups is not None and argument in self.groups.names
            table[:, column] = at + np.arange(count) if own else at
            at += count if own else 1
        return table


def takes_any_number(function: Callable[..., Any]) -> bool:
    """Say whether the signature of ``f(x, *parameters)`` leaves the parameters to p0."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return True
    return any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)


def argument_names(function: Callable[..., Any], count: int | None = None) -> tuple[str, ...]:
    """Return the names of a model's parameters: those of its signature, else p0, p1, … .

    Parameters
    ----------
    function
        ``f(x, *parameters)``.
    count
        How many there are; None: the signature must say.

    Raises
    ------
    StartError
        If neither the signature nor ``count`` says how many there are, or they contradict each other.
    """
    kinds = inspect.Parameter
    try:
        parameters = list(inspect.signature(function).parameters.values())[1:]
    except ValueError:
        parameters = [kinds("p", kinds.VAR_POSITIONAL)]
    plain = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    named = [p.name for p in parameters if p.kind in plain]
    if any(p.kind is kinds.VAR_POSITIONAL for p in parameters):
        if count is None:
            msg = "the model takes *parameters, so their number is unknown; give p0"
            raise StartError(msg)
        return tuple((named + [f"p{i}" for i in range(len(named), count)])[:count])
    optional = sum(p.default is not kinds.empty for p in parameters if p.kind in plain)
    if count is not None and not len(named) - optional <= count <= len(named):
        msg = f"p0 has {count} values but the model takes {len(named)} parameters: {', '.join(named)}"
        raise StartError(msg)
    return tuple(named[: count if count is not None else len(named)])


def checked_groups(groups: Groups | None, arguments: Sequence[str]) -> Groups | None:
    """Return the groups.

    Raises
    ------
    ModelError
        If they name a parameter the model does not have, or there is no group.
    """
    if groups is None:
        return None
    unknown = [n for n in groups.names if n not in arguments]
    if unknown or groups.count < 1:
        what = f"the model has no parameter {unknown[0]!r}" if unknown else f"there are {groups.count} groups"
        msg = f"groups: {what}; parameters are {', '.join(arguments)}, and a group count is at least 1"
        raise ModelError(msg)
    return groups
