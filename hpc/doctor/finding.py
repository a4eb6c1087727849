"""What a check of the doctor says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check.

    Attributes
    ----------
    name
        What was looked at.
    status
        ``fail`` means that runs will not work, ``warn`` that they may be slow or unsafe, ``skipped`` that
        there is nothing to check here.
    text
        What was found, with the numbers.
    remedy
        What to do about it; empty unless there is something to do.
    """

    name: str
    status: Status
    text: str
    remedy: str = ""
