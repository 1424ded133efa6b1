"""check: what it says of good runs and of damaged ones. presets. What all verbs have in common."""

import dataclasses
import json
import shutil
import threading
import time

import pytest
from tiny_runs import TEXT, TINY, make_runs, nplm, snapshot

from nplm import files
from nplm.cli import VERBS, check, main, presets
from nplm.models import PRESETS, Decoder, DecoderConfig
from nplm.train.checkpoint import save_checkpoint
from nplm.train.history import read_lines
from nplm.train.run import RunFolder

pytestmark = pytest.mark.cli


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_runs(tmp_path_factory.mktemp("verbs"))[0]


@pytest.fixture
def run(made, tmp_path):
    """A copy of a run of four updates, to be damaged."""
    return shutil.copytree(made, tmp_path / "run")


def verdicts(out):
    """{name: (verdict, text)} of the lines of `nplm check`."""
    lines = [line.split(maxsplit=2) for line in out.splitlines() if not line.startswith("A resume")]
    return {name: (verdict, text) for verdict, name, text in lines}


PARTS = [
    "run.json", "checkpoints/step-00000002", "checkpoints/step-00000004", "checkpoints/best.json",
    "metrics.jsonl", "samples.jsonl", "attempts.jsonl",
]  # fmt: skip


# ---- check ---------------------------------------------------------------------------------------


def test_check_lists_every_part_of_a_good_run_and_changes_nothing(capsys, run):
    before = snapshot(run)
    code, out, _ = nplm(capsys, "check", run)
    found = verdicts(out)
    assert code == 0
    assert {verdict for verdict, _ in found.values()} == {"ok"}
    assert list(found) == PARTS
    assert found["metrics.jsonl"][1] == "4 lines, step 1 to 4"
    assert found["attempts.jsonl"][1] == "1 line, attempt 1 to 1"
    assert found["checkpoints/step-00000002"][1].startswith("step 2, ")
    assert found["checkpoints/step-00000004"][1].endswith(" MB, best, newest")
    assert out.splitlines()[-1] == "A resume would go on after step 4"
    assert snapshot(run) == before


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def add(text):
    return lambda path: path.write_text(path.read_text() + text)


def replace(old, new):
    def change(path):
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return change


def become_a_folder(path):
    path.unlink()
    path.mkdir()


NEWEST = "checkpoints/step-00000004"
MISSING = "lines are missing: "
DAMAGE = [  # a file, what happens to it, what the line of its part says; * where no resume is left
    (f"{NEWEST}/model.safetensors", cut, "model.safetensors: damaged: expected"),
    (f"{NEWEST}/model.safetensors", flip, "its SHA-256 differs"),
    (f"{NEWEST}/optimizer.safetensors", flip, "optimizer.safetensors: damaged"),
    (f"{NEWEST}/tokenizer.json", flip, "tokenizer.json: damaged"),
    (f"{NEWEST}/state.json", lambda path: path.unlink(), "state.json: missing"),
    (f"{NEWEST}/MANIFEST.json", lambda path: path.unlink(), "MANIFEST.json: missing"),
    (f"{NEWEST}/MANIFEST.json", cut, "MANIFEST.json: "),
    (f"{NEWEST}/model.safetensors", become_a_folder, "is not a regular file"),
    ("checkpoints/best.json", replace('"step": 4', '"step": 3'), "names step 3, which has no"),
    ("metrics.jsonl", add('{"step": 5, "lo'), "line 5 is half written"),
    ("metrics.jsonl", replace('{"step": 2', '{"step"; 2'), "line 2: not valid JSON"),
    ("metrics.jsonl", replace('"step": 3', '"step": 2'), "line 3: step 2 follows 2"),
    ("metrics.jsonl", add("[1]\n{}\n"), "line 5 names no step (and 1 more)"),
    ("metrics.jsonl", cut, MISSING),
    ("metrics.jsonl", lambda path: path.unlink(), f"*{MISSING}0 bytes, and "),
    ("metrics.jsonl", become_a_folder, "*is a folder"),
    ("samples.jsonl", add("\n"), "line 3: not valid JSON"),
    ("samples.jsonl", cut, MISSING),
    ("attempts.jsonl", cut, "line 1 is half written"),
    ("run.json", replace("{", "["), "*run.json: not valid JSON"),
    ("run.json", replace('"batch_size": 2', '"batch_size": "x"'), "*its settings cannot be used"),
    ("run.json", lambda path: path.unlink(), "*no such file"),
]


@pytest.mark.parametrize("case", range(len(DAMAGE)))
def test_check_names_the_damaged_part_and_still_lists_the_others(capsys, run, case):
    name, damage, says = DAMAGE[case]
    damage(run / name)
    before = snapshot(run)
    code, out, err = nplm(capsys, "check", run)
    part = NEWEST if name.startswith(NEWEST) else name
    found = verdicts(out)
    assert snapshot(run) == before
    assert (code, found[part][0]) == (3, "damaged"), out
    assert says.removeprefix("*") in found[part][1]
    assert [verdict for verdict, _ in found.values()].count("damaged") == 1
    assert list(found) == PARTS
    assert "1 of 7 parts damaged" in err
    last = out.splitlines()[-1]
    if says.startswith("*"):
        assert last.startswith("A resume is not possible: "), last
        assert name in last
    else:
        step = 2 if part == NEWEST or says == MISSING else 4
        assert last == f"A resume would go on after step {step}"


def test_check_says_of_a_run_without_a_good_checkpoint_that_it_cannot_go_on(capsys, run):
    for weights in run.glob("checkpoints/*/model.safetensors"):
        flip(weights)
    code, out, err = nplm(capsys, "check", run)
    assert (code, "2 of 7 parts damaged" in err) == (3, True)
    assert "none of its 2 checkpoints can be used" in out.splitlines()[-1]


def test_a_checkpoint_that_was_saved_by_other_means_is_good_but_cannot_go_on(capsys, run):
    save_checkpoint(RunFolder(run), 5, model=Decoder(PRESETS["char"]))
    code, out, _ = nplm(capsys, "check", run)
    assert (code, verdicts(out)["checkpoints/step-00000005"][0]) == (0, "ok")
    assert out.splitlines()[-1] == "A resume would go on after step 4"


def test_check_refuses_a_checkpoint_under_the_name_of_another_step(capsys, run):
    (run / NEWEST).rename(run / "checkpoints/step-00000003")
    code, out, _ = nplm(capsys, "check", run)
    assert code == 3
    assert "it is of step 4" in verdicts(out)["checkpoints/step-00000003"][1]


def test_check_names_what_a_killed_run_left_and_calls_it_no_damage(capsys, run):
    (run / "checkpoints/.tmp-12-00000000").mkdir()
    (run / "checkpoints/.del-12-00000000").mkdir()
    (run / ".tmp-12-0000000a").write_text("half of run.js")
    (run / NEWEST).rename(run / "checkpoints/rejected-step-00000004")
    (run / "checkpoints/best.json").unlink()
    code, out, _ = nplm(capsys, "check", run)
    left = {name: text for name, (verdict, text) in verdicts(out).items() if verdict == "leftover"}
    assert code == 0
    assert list(left) == [".tmp-12-0000000a", "checkpoints/.del-12-00000000",
                          "checkpoints/.tmp-12-00000000",
                          "checkpoints/rejected-step-00000004"]  # fmt: skip
    assert "written" in left[".tmp-12-0000000a"]
    assert "removed" in left["checkpoints/.del-12-00000000"]


def test_check_holds_the_kept_text_against_the_hash_in_run_json(capsys, run):
    (run / "corpus.txt").write_text(TEXT)
    assert verdicts(nplm(capsys, "check", run)[1])["corpus.txt"][0] == "ok"
    (run / "corpus.txt").write_text(TEXT + "!")
    code, out, _ = nplm(capsys, "check", run)
    assert (code, verdicts(out)["corpus.txt"][0]) == (3, "damaged")


def test_a_text_that_has_changed_is_no_damage_but_keeps_a_run_from_going_on(capsys, run, tmp_path):
    (tmp_path / "other.txt").write_text(TEXT * 2)
    record = json.loads((run / "run.json").read_text())
    record["config"]["data"] = [str(tmp_path / "other.txt")]
    (run / "run.json").write_text(json.dumps(record))
    code, out, _ = nplm(capsys, "check", run)
    assert code == 0
    last = out.splitlines()[-1]
    assert last.startswith(f"A resume is not possible: {tmp_path}/other.txt: the text is another")


def test_check_of_a_run_that_has_just_begun_is_good(capsys, run):
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    for name in ("metrics.jsonl", "samples.jsonl"):
        (run / name).unlink()
    code, out, _ = nplm(capsys, "check", run)
    assert code == 0
    assert "A resume is not possible: " in out.splitlines()[-1]
    assert "it ended before its first checkpoint" in out.splitlines()[-1]


def test_check_refuses_a_folder_that_is_no_run(capsys, tmp_path):
    for path, says in ((tmp_path, "not a run"), (tmp_path / "no", "could not be listed")):
        code, out, err = nplm(capsys, "check", path)
        assert (code, out, says in err) == (3, "", True)


def test_a_checkpoint_rotated_away_while_it_is_read_is_no_damage(capsys, run, monkeypatch):
    real = check.load_checkpoint

    def rotated(path):
        if path.name == "step-00000002":
            files.remove_directory(path)
        return real(path)

    monkeypatch.setattr(check, "load_checkpoint", rotated)
    code, out, _ = nplm(capsys, "check", run)
    assert code == 0
    assert "step-00000002" not in out


def test_a_line_that_is_written_while_it_is_read_is_no_damage(capsys, run, monkeypatch):
    path = run / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    monkeypatch.setattr(time, "sleep", lambda _: path.write_bytes(whole))
    assert nplm(capsys, "check", run)[0] == 0


def test_check_beside_a_running_training_finds_no_damage(capsys, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    words = ["train", "--data", str(tmp_path / "text.txt"), "--out", str(tmp_path), "--steps", "30",
             "--eval-every", "2", "--checkpoint-every", "1", *TINY]  # fmt: skip
    training = threading.Thread(target=main, args=(words,))
    training.start()
    codes = []
    while training.is_alive():
        for folder in tmp_path.glob("*/run.json"):
            codes.append(main(["check", str(folder.parent)]))
        time.sleep(0.02)
    training.join()
    assert codes
    assert set(codes) == {0}, capsys.readouterr()


# ---- presets -------------------------------------------------------------------------------------

SHAPES = [
    {}, {"bias": True}, {"tied": False}, {"norm": "rms", "bias": True}, {"positions": "rope"},
    {"n_kv_head": 2}, {"activation": "swiglu", "bias": True, "n_hidden": 20}, {"n_layer": 3},
]  # fmt: skip


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_the_computed_number_of_parameters_is_the_models(shape):
    small = {"vocab_size": 13, "context": 5, "n_layer": 2, "n_head": 4, "n_embd": 24, "bias": False}
    config = DecoderConfig(**{**small, **SHAPES[shape]})
    assert presets.parameters(config) == Decoder(config).num_parameters()


def test_presets_lists_every_preset_with_its_own_numbers(capsys):
    began = time.perf_counter()
    code, out, _ = nplm(capsys, "presets")
    assert time.perf_counter() - began < 1
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[1:]}
    for name, c in PRESETS.items():
        sizes = [f"{n:,}" for n in (c.context, c.n_layer, c.n_head, c.n_embd)]
        assert rows[name][1:5] == sizes
        if name != "gpt2":
            assert rows[name][0] == f"{Decoder(c).num_parameters():,}"
    assert rows["gpt2"][0] == "124,439,808"  # Radford et al.'s 124M
    assert rows["gpt2"][5:] == ["21.0", "GB"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_show_prints_every_setting_with_its_unit(capsys, name):
    code, out, _ = nplm(capsys, "presets", "show", name)
    assert code == 0
    lines = {line.split()[0]: line.split(maxsplit=2)[1:] for line in out.splitlines()[1:]}
    for field in dataclasses.fields(DecoderConfig):
        value, unit = lines[field.name]
        assert value == repr(getattr(PRESETS[name], field.name))
        assert unit


@pytest.mark.parametrize(("words", "says"), [
    (["show", "tiny-lama"], "did you mean 'tiny-llama'?"), (["show"], "presets show NAME with a"),
    (["shw", "char"], "got shw char"), (["char"], ", got char"),
    (["show", "char", "gpt2"], "got show char gpt2"), (["--hlp"], "did you mean --help?"),
])  # fmt: skip
def test_presets_refuses_other_words(capsys, words, says):
    code, out, err = nplm(capsys, "presets", *words)
    assert (code, out, says in err) == (2, "", True), err


# ---- all verbs -----------------------------------------------------------------------------------


def test_nplm_alone_says_what_to_type_in_twelve_lines(capsys):
    code, out, _ = nplm(capsys)
    assert (code, len(out.splitlines()) <= 12) == (0, True)
    for verb in VERBS:
        assert f"  nplm {verb} " in out, verb


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(capsys, verb):
    code, out, _ = nplm(capsys, verb, "--help")
    assert code == 0
    assert f"nplm {verb}" in out


def test_a_file_of_lines_that_is_not_there_has_none(tmp_path):
    assert read_lines(tmp_path / "metrics.jsonl") == ([], [])
