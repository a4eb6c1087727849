"""homodyne's YAML becomes a job that composes; every key without a counterpart is named; the defaults are homodyne's."""

from pathlib import Path

import pytest
import yaml

from hpc.cli.compose import compose_config, resolved
from hpc.cli.folders import config_folders
from hpc.errors import ConfigError, InputError
from hpc.load import job_options
from hpc.options import build, plain
from tessera.xpcs.errors import XpcsInputError
from tessera.xpcs.homodyne_config import translate
from tessera.xpcs.import_config import main as import_config
from tessera.xpcs.options import XpcsOptions
from tessera.xpcs.physics import parameters_of

HOMODYNE = """
analysis_mode: laminar_flow
analyzer_parameters:
  dt: 0.001
  start_frame: 1
  end_frame: 2000
  scattering: {wavevector_q: 0.0054}
  geometry: {stator_rotor_gap: 2e6}   # YAML 1.1 reads this as text
experimental_data:
  data_folder_path: ./data/sample/
  data_file_name: experiment.hdf
  cache_file_path: ./data
phi_filtering:
  enabled: true
  target_ranges:
    - {min_angle: -10.0, max_angle: 10.0, description: along}
    - {min_angle: 170.0, max_angle: 190.0}
  quality_control: {min_angles_required: 1}
initial_parameters:
  parameter_names: [D0, alpha, D_offset, gamma_dot_t0, beta, gamma_dot_t_offset, phi0]
  values: [1200.0, -0.3, 50.0, 0.002, 0.1, 0.0, 1.0]
  per_angle_scaling: {contrast: [0.2, 0.4], offset: null}
  active_parameters: [D0, alpha, gamma_dot_t0, phi0]
parameter_space:
  bounds:
    - {name: D0, min: 10, max: 1e6, type: TruncatedNormal}
    - {name: phi0, min: -30.0, max: 30.0}
    - {name: contrast, min: 0, max: 1}
    - {name: offset, min: 0.9, max: 1.1}
optimization:
  method: nlsq
  nlsq:
    max_iterations: 250
    tolerance: 1.0e-8
    loss: soft_l1
    hybrid_streaming: {warmup_iterations: 200, max_warmup_iterations: 40, enable_checkpoints: true}
    anti_degeneracy: {per_angle_mode: individual, hierarchical: {enable: true}}
    multi_start: {enable: true, n_starts: 6}
  cmc: {sharding: {strategy: random}}
my_own: {key: 1}
"""


@pytest.fixture
def translated():
    return translate(yaml.safe_load(HOMODYNE))


def test_what_has_a_counterpart_is_carried_over(translated):
    options = build(XpcsOptions, translated.job)
    assert options.experimental_data.file_path == Path("data/sample/experiment.hdf")
    analyzer = options.analyzer_parameters
    assert (analyzer.dt, analyzer.start_frame, analyzer.end_frame) == (0.001, 1, 2000)
    assert (analyzer.scattering.wavevector_q, analyzer.geometry.stator_rotor_gap) == (0.0054, 2e6)
    assert [(r.min_angle, r.max_angle) for r in options.ranges] == [(-10, 10), (170, 190)]
    assert options.phi_filtering.fallback_to_all_angles  # homodyne's default, where its file does not say
    start = options.initial_parameters
    assert start.values["D0"] == 1200
    assert "contrast" not in start.values
    assert start.fixed_parameters == {"D_offset": 50.0, "beta": 0.1, "gamma_dot_t_offset": 0.0}
    assert options.parameter_space.bounds == {"D0": (10, 1e6), "phi0": (-30, 30)}
    assert options.optimization.per_angle_mode == "individual"
    assert options.optimization.loss == "soft_l1"
    config = options.optimization.config()
    assert (config.gauss_newton_max_iterations, config.max_warmup_iterations) == (250, 40)
    assert (config.enable_multistart, config.n_starts) == (True, 6)
    assert config.warmup_iterations == 0  # the template's 200 is not carried over


def test_every_other_key_is_named_with_a_reason(translated):
    unused = dict(translated.unused)
    assert unused["optimization.cmc.sharding.strategy"] == "sampling is not there"
    assert unused["my_own.key"] == "unknown to homodyne's templates and to this job"
    assert "experimental_data.cache_file_path" in unused
    assert "phi_filtering.quality_control.min_angles_required" in unused
    assert "optimization.nlsq.hybrid_streaming.enable_checkpoints" in unused
    assert "optimization.nlsq.anti_degeneracy.hierarchical.enable" in unused
    assert not any("soft_l1" in text for text in translated.changed)
    assert any("bounds of offset are 0.5 … 1.5 here" in text for text in translated.changed)
    assert "initial_parameters.per_angle_scaling.contrast" in unused


def test_a_flat_file_of_old_homodyne():
    job = translate({"data_file": "a/b.hdf", "analysis_mode": "static", "dt": 0.1, "end_frame": 90}).job
    assert job["experimental_data"]["file_path"] == "a/b.hdf"
    assert job["analysis_mode"] == "static_isotropic"
    assert job["analyzer_parameters"] == {"dt": 0.1, "end_frame": 90}


def test_the_loss_that_homodyne_takes_unasked_is_named():
    assert any("homodyne by soft_l1" in text for text in translate({"data_file": "b.hdf", "dt": 0.1}).changed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"analysis_mode": "turbulent"}, "analysis_mode is 'turbulent'"),
        ({"experimental_data": {}}, "names no file"),
        ({"optimization": {"nlsq": {"loss": "tukey"}}}, r"optimization\.nlsq\.loss is 'tukey'; losses are linear"),
        ({"analyzer_parameters": {"dt": "fast"}}, r"analyzer_parameters\.dt is 'fast'; it must be a number"),
        ({"initial_parameters": {"values": [1.0]}}, "1 entries for 7 parameter_names"),
    ],
)
def test_what_cannot_be_translated_is_said(change, words):
    with pytest.raises(XpcsInputError, match=words):
        translate({**yaml.safe_load(HOMODYNE), **change})


def test_the_written_job_composes(tmp_path, capsys, translated):
    file = tmp_path / "mine.yaml"
    file.write_text(HOMODYNE)
    assert import_config([str(file), "--to", str(tmp_path / "conf")]) == 0
    written = (tmp_path / "conf" / "job" / "mine.yaml").read_text()
    for key, _ in translated.unused:
        assert f"# No counterpart: {key} (" in written
    assert "my_own.key: unknown" in capsys.readouterr().out
    folders = config_folders([str(tmp_path / "conf")])
    section = resolved(compose_config(["job=mine"], folders), ["job=mine"], folders)["job"]
    options = build(XpcsOptions, job_options(section))
    assert options.initial_parameters.values["D0"] == 1200
    assert options.initial_parameters.values["alpha"] == -0.3
    assert options.parameter_space.bounds["alpha"] == (-2, 2)
    assert options.output.plotted_angles == 4
    with pytest.raises(InputError, match="already there"):
        import_config([str(file), "--to", str(tmp_path / "conf")])


def test_a_file_that_is_no_configuration(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("a: [1")
    with pytest.raises(InputError, match="is no YAML"):
        import_config([str(file)])
    file.write_text("- 1")
    with pytest.raises(InputError, match="holds no sections"):
        import_config([str(file)])
    with pytest.raises(InputError, match="cannot be read"):
        import_config([str(tmp_path / "none.yaml")])


def test_the_documented_defaults_are_those_of_the_code():
    folders = config_folders()
    section = resolved(compose_config(["job=xpcs"], folders), ["job=xpcs"], folders)["job"]
    section["experimental_data"]["file_path"] = "x.h5"
    given = build(XpcsOptions, job_options(section))
    registry = parameters_of("laminar_flow")
    assert given.parameter_space.bounds == {p.name: (p.lower, p.upper) for p in registry}
    assert given.initial_parameters.values == {p.name: p.start for p in registry}
    bare = build(XpcsOptions, {"experimental_data": {"file_path": "x.h5"}})
    apart = ("parameter_space", "initial_parameters")
    assert {k: v for k, v in plain(given).items() if k not in apart} == {
        k: v for k, v in plain(bare).items() if k not in apart
    }


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("job.parameter_space.bounds.D0=[5,1]", "lower bound 5 must be below the upper one, 1"),
        ("job.initial_parameters.fixed_parameters={D_0: 1}", "unknown parameter; did you mean 'D0'"),
        ("job.optimization.per_angle_mode=averaged", "'averaged' is not a valid choice"),
        ("job.optimization.preset=fast", "there is no preset 'fast'"),
        ("job.optimization.hybrid_streaming={chunk_sise: 5}", "chunk_sise"),
        ("job.optimization.sigma=0", "must be > 0"),
        ("job.initial_parameters.fixed_parameters={offset: 1}", "take their optimum at every step"),
        ("job.analysis_mode=flow", "'flow' is not a valid choice"),
    ],
)
def test_wrong_options_are_named(words, complaint):
    folders = config_folders()
    overrides = ["job=xpcs", "job.experimental_data.file_path=x.h5", words]
    section = resolved(compose_config(overrides, folders), overrides, folders)["job"]
    with pytest.raises(ConfigError, match=complaint.replace("(", r"\(")):
        build(XpcsOptions, job_options(section))
