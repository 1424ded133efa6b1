"""Settings from a TOML file: the flags' names and types, flags win, nothing is taken silently."""

import json
from operator import attrgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nplm.cli import arguments, main
from nplm.cli.train import TrainCommand
from nplm.errors import ConfigError
from nplm.train.config import TrainConfig

pytestmark = pytest.mark.cli

FILE = """
data = ["text.txt"]
steps = 2
batch-size = 2          # '-' and '_' are the same
context = 16
sample_length = 5
lr = 1                  # a whole number is a number
clip_norm = "None"
out = "there"

[schedule]
name = "StepLR"
options = ["step_size=1", "gamma=0.5"]

[stop]
patience = 3
"""


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.toml").write_text(FILE)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog.\n" * 40)
    return tmp_path


def test_a_run_takes_its_settings_from_the_file_and_flags_win(settings, capsys):
    assert main(["train", "--config", "settings.toml", "--lr", "0.002"]) == 0, capsys.readouterr()
    run = next((settings / "there").iterdir())
    config = json.loads((run / "run.json").read_text())["config"]
    expected = {
        "data": [str(settings / "text.txt")], "steps": 2, "batch_size": 2, "context": 16,
        "lr": 0.002, "clip_norm": None, "out": "there", "seed": 1337,
    }  # fmt: skip
    assert {name: config[name] for name in expected} == expected
    assert config["schedule"]["name"] == "StepLR"
    assert config["schedule"]["options"] == ["step_size=1", "gamma=0.5"]
    assert (config["stop"]["patience"], config["stop"]["delta"]) == (3, None)
    lrs = [json.loads(line)["lr"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lrs == [0.002, 0.001]


def test_an_empty_file_leaves_every_default(tmp_path):
    (tmp_path / "empty.toml").write_text("")
    made, problems = arguments.read_settings(TrainConfig, tmp_path / "empty.toml")
    assert (made, problems) == (TrainConfig(), [])


def as_toml(value):
    if isinstance(value, tuple):
        return json.dumps([str(item) for item in value])
    return json.dumps("None" if value is None else value, default=str)


def test_every_default_can_be_written_into_a_file(tmp_path):
    defaults, lines = TrainConfig(), []
    flags = arguments.flags_of(TrainConfig)
    opposites = {flag for flag in flags if flags.get("--" + flag.removeprefix("--no-")) is bool}
    opposites = {flag for flag in opposites if flag.startswith("--no-")}
    for flag in flags.keys() - opposites - {"--help"}:
        name = flag[2:].replace("-", "_")
        lines.append(f"{name} = {as_toml(attrgetter(name)(defaults))}")
    (tmp_path / "all.toml").write_text("\n".join(lines))
    made, problems = arguments.read_settings(TrainConfig, tmp_path / "all.toml")
    assert (made, problems) == (TrainConfig(), [])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("steps = true", "steps: expected a whole number or None, got True"),
        ("steps = 3.5", "steps: expected a whole number or None, got 3.5"),
        ('steps = "3"', "steps: expected a whole number or None, got '3'"),
        ("lr = false", "lr: expected a number, got False"),
        ("lr = 1" + "0" * 400, "lr: expected a number below 1e308, got 1000"),
        ('data = ["a\\u0000b"]', "data: expected a path, got"),
        ('out = ""', "out: expected a path, got ''"),
        ("lr = 2024-01-01", "lr: expected a number, got datetime.date"),
        ("data = [3]", "data: expected text, got [3]"),
        ("preset = 3", "preset: expected text, got 3"),
        ("schedule = 3", "schedule: expected a table [schedule], got 3"),
        ("[steps]\na = 1", "steps: expected a whole number or None, got {'a': 1}"),
        ("warmup_steps = 3", "unknown setting 'warmup_steps'; did you mean 'schedule.warmup"),
        ('config = "other.toml"', "unknown setting 'config'"),
        ("zzzzzz = 3", "unknown setting 'zzzzzz'"),
    ],
)
def test_a_value_of_another_type_or_an_unknown_name_is_refused(tmp_path, line, says):
    (tmp_path / "wrong.toml").write_text(line)
    with pytest.raises(ConfigError) as refused:
        arguments.parse(
            TrainCommand, ["--config", str(tmp_path / "wrong.toml")], "nplm train", TrainConfig
        )
    assert says in str(refused.value)
    assert "wrong.toml: " in str(refused.value)


@given(st.dictionaries(
    st.sampled_from(["lrr", "sed", "stpes", "bathc_size", "scheduel"]), st.integers(0, 9),
    min_size=1,
))  # fmt: skip
def test_every_unknown_name_of_a_file_is_said_at_once(tmp_path_factory, table):
    path = tmp_path_factory.mktemp("toml") / "many.toml"
    path.write_text("".join(f"{name} = {value}\n" for name, value in table.items()))
    _, problems = arguments.read_settings(TrainConfig, path)
    assert len(problems) == len(table)
    for name, problem in zip(table, problems):
        assert f"unknown setting {name!r}; did you mean" in problem
