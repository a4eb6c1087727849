"""The report's sections show the fit's numbers, and every picture is a picture."""

import dataclasses

import numpy as np
import pytest
from xpcs.made_fits import made_finding

from hpc.report.view import RunView
from tessera.lsq import plots as fit_plots
from tessera.xpcs.fit_file import write_fit
from tessera.xpcs.outputs import fit_arrays
from tessera.xpcs.report import sections


@pytest.fixture
def view(tmp_path):
    (tmp_path / "results").mkdir()
    write_fit(tmp_path / "results" / "fit.h5", *fit_arrays(made_finding()))
    return RunView(tmp_path, {"job": {"output": {"plotted_angles": 1}}}, [], {})


def test_numbers_and_pictures(view):
    parameters, against, how, data = sections(view)
    (row,) = [r for r in parameters.tables[0].rows if r[0] == "D0"]
    assert row[:4] == ("D0", 1500.0, 15.0, "Å²/s")
    assert "widen" in next(r for r in parameters.tables[0].rows if r[0] == "phi0")[-1]
    assert "Converged: " in parameters.text
    assert "after 4 passes" in parameters.text
    assert "1 angles of 2" in against.text
    assert len(against.tables[0].rows) == 2
    assert "A note." in data.text
    figures = [f for s in (parameters, against, how, data) for f in s.figures]
    assert len(figures) == 6
    assert all(f.image.startswith(b"\x89PNG") and f.caption for f in figures)


def test_a_robust_fit_is_called_one(tmp_path):
    (tmp_path / "results").mkdir()
    finding = dataclasses.replace(made_finding(), loss=("huber", 1.5), errors="sandwich")
    write_fit(tmp_path / "results" / "fit.h5", *fit_arrays(finding))
    parameters = sections(RunView(tmp_path, {}, [], {}))[0]
    assert "Loss huber, not quadratic from 1.5 standard errors on, per degree" in parameters.text
    assert "(sandwich)" in parameters.tables[0].caption


def test_an_unfinished_run_says_so(tmp_path):
    (section,) = sections(RunView(tmp_path, {}, [], {}))
    assert "not finished" in section.text


def test_a_history_without_an_accepted_step_is_drawn():
    history = np.array([[np.inf, np.nan, 1.0, 0.5, np.nan, 0.0]])
    assert fit_plots.convergence(history).startswith(b"\x89PNG")
