"""Damaged files of every format that a user may hand in end with a result or with an error of ours.

More of them, and of one format: ``python -m mutation.campaign SEED NUMBER FORMAT`` with ``tests`` on the path.
"""

import pytest
from mutation.campaign import campaign
from mutation.formats import FORMATS

SEED = 20261201
RUN_FILES = [name for name in FORMATS if name.startswith("run ")]
MODELS = [name for name in FORMATS if name.startswith("model ")]
OTHERS = [name for name in FORMATS if name not in RUN_FILES + MODELS]


@pytest.mark.parametrize(
    ("names", "number"),
    [(RUN_FILES, 30), (MODELS, 60), (OTHERS[::2], 120), (OTHERS[1::2], 120)],
    ids=["run directories", "models", "data", "more data"],
)
def test_damage_is_read_or_explained(names, number):
    outcomes = campaign(names, SEED, number)
    bad = {f"{name}: {kind}": told for name, o in outcomes.items() for kind, told in o.bad.items()}
    assert not bad, "\n".join(f"{what}, {told}" for what, told in bad.items())
    for name, outcome in outcomes.items():
        assert outcome.counts.total() == number, name
    # Damage to what no checksum covers may pass; that all of it does would mean that nothing was damaged.
    assert sum(o.counts["explained"] for o in outcomes.values()) > number
