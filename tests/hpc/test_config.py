"""From words to checked settings: what is composed, what is refused, and which hints are given."""

from pathlib import Path

import pytest
import yaml

from hpc.cli.cluster import changed
from hpc.cli.compose import compose_config, compose_run, expand, resolved, sweep_directory
from hpc.cli.folders import config_folders, groups, headline
from hpc.cli.main import main
from hpc.errors import ConfigError, InputError
from hpc.options import build, plain
from hpc.settings import Settings, SlurmCluster

CONF = Path(__file__).parent / "conf"
LISTS = Path(__file__).parents[2] / "conf"


@pytest.fixture
def folders(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return config_folders([str(CONF)])


def refused(folders, *words):
    with pytest.raises(ConfigError) as caught:
        compose_run(words, folders, Path("/base"))
    return str(caught.value)


def test_a_run_is_complete_and_absolute(folders):
    composed = compose_run(("job=toy", "job.units=3", "job.scratch=here", "run.dir=out/r"), folders, Path("/base"))
    assert composed.settings.run.dir == Path("/base/out/r")
    assert composed.mapping["job"]["scratch"] == "/base/here"
    assert composed.mapping["job"]["units"] == 3
    assert composed.mapping["job"]["_target_"] == "toyjob.ToyJob"
    assert composed.mapping["checkpoint"]["every"] == 30.0
    assert composed.mapping["cluster"]["threads_per_process"] == "auto"
    assert "sweep_dir" not in composed.mapping["run"]


def test_the_written_configuration_reads_back_the_same(folders):
    composed = compose_run(("job=toy", "job.fail=[a,b]", "run.dir=r"), folders, Path("/base"))
    again = yaml.safe_load(yaml.safe_dump(composed.mapping))
    assert again == composed.mapping
    assert plain(build(Settings, again, "config")) == again


def test_every_engine_key_is_documented_and_has_the_default_of_its_field(folders):
    """The files are the manual: a key without a comment, a stale default or a missing key is a bug."""
    composed = compose_run(("job=toy", "run.dir=r"), folders, Path("/base"))
    defaults = plain(Settings(job=composed.mapping["job"], run=composed.settings.run))
    written = resolved(compose_config(("job=toy", "run.dir=/base/r"), folders), (), folders)
    del written["run"]["sweep_dir"]
    assert {**written, "job": composed.mapping["job"]} == composed.mapping == defaults
    slurm = resolved(compose_config(("job=toy", "cluster=slurm", "run.dir=/r"), folders), (), folders)["cluster"]
    assert build(SlurmCluster, slurm) == SlurmCluster()
    assert slurm.keys() == plain(SlurmCluster()).keys()
    for file in (LISTS / "config.yaml", *(LISTS / "cluster").glob("[!e]*.yaml")):
        for line in file.read_text().splitlines():
            if ":" in line and not line.startswith("#") and not line.rstrip().endswith(":"):
                assert " # " in line, f"{file.name}: {line}"


def test_the_default_run_directory_names_the_job_and_the_time(folders):
    directory = compose_run(("job=toy",), folders, Path("/base")).settings.run.dir
    assert directory.parent == Path("/base/runs")
    assert directory.name.startswith("toy-20")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "job is missing; choose one with job=NAME, valid: "),
        (("job=toyy",), "job=toyy: no such job; did you mean 'toy'?"),
        (("job=toy", "cluster=lokal"), "cluster=lokal: no such cluster; did you mean 'local'?"),
        (("job=toy", "cluster.rank=2"), "cluster.rank: unknown key; did you mean 'ranks'?"),
        (("job=toy", "clutser.ranks=2"), "clutser: unknown key; did you mean 'cluster'?"),
        (("job=toy", "job.unit=2"), "job.unit: unknown key; did you mean 'units'?"),
        (("job=toy", "+job.unit=2"), "job.unit: unknown key; did you mean 'units'?"),
        (("job=toy", "seed.x=2"), "seed.x: seed is a value, not a section of keys"),
        (("job=toy", "job.fail.x=2"), "job.fail.x: job.fail is a value, not a section of keys"),
        (("job=toy", "job.units=many"), "job.units: must be a whole number, not 'many'"),
        (("job=toy", "cluster.launcher=locl"), "did you mean 'local'?"),
        (("job=toy", "checkpoint.keep=1"), "checkpoint.keep: must be >= 2"),
        (("job=toy", "cluster.ranks=0"), "cluster.ranks: must be >= 1"),
        (("job=toy", "job.fail=[a"), "'job.fail=[a' cannot be read as key=value"),
        (("job=toy", "job.fail=a,b"), "add -m to sweep over it"),
        (("job=toy", "job.units=range(3)"), "--multirun"),
        (("job=toy", "run.dir=${nowhere}"), "run.dir: Interpolation key 'nowhere' not found"),
        (("job=toy", "hydra.run.dir=x"), "use run.dir"),
        (("job=toy", "hydra/launcher=submitit_slurm"), "use cluster=NAME"),
        (("job=toy", "job._target_=toyjob.TyJob"), "did you mean 'ToyJob'"),
        (("job=toy", "job._target_=toyjob.ToyOptions"), "is no subclass of hpc.Job"),
        (("job=toy", "job._target_=notthere.Job"), "there is no module 'notthere'"),
    ],
)
def test_mistakes_are_named_with_the_nearest_valid_names(folders, words, said):
    assert said in refused(folders, *words)


def test_all_mistakes_are_named_at_once(folders):
    message = refused(folders, "job=toy", "job.units=x", "job.seconds=-1", "checkpoint.keep=1")
    assert [line.partition(":")[0] for line in message.splitlines()] == ["job.units", "job.seconds", "checkpoint.keep"]
    message = refused(folders, "job=toy", "job.unit=1", "cluster.rank=1")
    assert len(message.splitlines()) == 2


def test_an_input_that_the_job_refuses_is_refused_before_the_run(folders, monkeypatch):
    import toyjob

    def check(self):
        msg = "no such list"
        raise InputError(msg)

    monkeypatch.setattr(toyjob.ToyJob, "check", check)
    with pytest.raises(InputError, match="no such list"):
        compose_run(("job=toy",), folders, Path("/base"))


def test_sweeps_expand_like_hydra(folders):
    members = expand(("job=toy", "job.units=2,4", "seed=range(0,3)"), folders)
    assert members == [("job=toy", f"job.units={u}", f"seed={s}") for u in (2, 4) for s in (0, 1, 2)]
    assert {words[0] for words in expand(("job=glob(*)",), folders)} == {f"job={j}" for j in groups(folders)["job"]}
    with pytest.raises(ConfigError, match=r"set run\.sweep_dir instead"):
        expand(("job=toy", "run.dir=x", "seed=1,2"), folders)
    assert sweep_directory(("job=toy", "run.sweep_dir=s"), folders, Path("/base")) == Path("/base/s")


def test_a_user_folder_adds_options_and_a_missing_one_is_named(folders, tmp_path):
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "big.yaml").write_text("# Many.\nlauncher: local\nranks: 64\n")
    mine = config_folders([str(CONF), str(tmp_path)])
    assert compose_run(("job=toy", "cluster=big"), mine, Path("/b")).settings.cluster.ranks == 64
    assert headline(groups(mine)["cluster"]["big"]) == "Many."
    with pytest.raises(ConfigError, match="does not exist"):
        config_folders([str(tmp_path / "nowhere")])


BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"scratch: caf\xe9\n", "UTF-8"),
        (b"a: \x00\n", "control characters"),
        (b"a: 1\na: 2\n", "duplicate key a"),
        (b"7\n", "int"),
        (b"? [a]\n: 1\n", "unhashable"),
        (b"a: " + b"[" * 500 + b"]" * 500, "sections deep"),
        (BOMB.encode(), "aliases"),
    ],
)
def test_a_file_of_a_user_folder_that_is_no_configuration_is_named(tmp_path, content, said):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "mine.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"mine\.yaml: cannot be read as a configuration \(.*{said}"):
        compose_config(["job=mine"], config_folders([str(tmp_path)]))
    headline(tmp_path / "job" / "mine.yaml")


def test_a_single_value_is_shown_without_commands_for_the_terminal(tmp_path, capsys):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "mine.yaml").write_text('name: "a\\e[31mb"\n')
    assert main(["--config-dir", str(tmp_path), "job=mine", "--cfg", "job", "--package", "job.name"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == r"a\x1b[31mb"


def test_resume_changes_only_what_does_not_touch_the_results(folders):
    config = compose_run(("job=toy", "run.dir=r"), folders, Path("/base")).mapping
    new = changed(config, ["cluster.ranks=4", "checkpoint.every=1e1", "cluster.threads_per_process=auto"])
    assert (new["cluster"]["ranks"], new["checkpoint"]["every"]) == (4, 10.0)
    assert config["cluster"]["ranks"] == 1
    for word, said in (
        ("job.units=3", "cannot change in a run that has begun"),
        ("seed=3", "cannot change in a run that has begun"),
        ("cluser.ranks=3", "did you mean 'cluster'"),
        ("cluster.rank=3", "did you mean 'ranks'"),
        ("ranks", "is no key=value"),
    ):
        with pytest.raises(ConfigError, match=said):
            changed(config, [word])
