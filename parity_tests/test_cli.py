"""The command line: what it prints, what it leaves on disk, its sentences and exit codes."""

import json
import shlex
import shutil
import subprocess
import sys

import pytest
from bad_input import BAD, OTHERS, make_files
from tiny_runs import WITHOUT_TORCH

from nplm import files
from nplm.cli import arguments, generate, main
from nplm.cli.generate import GenerateConfig
from nplm.cli.train import TrainCommand
from nplm.parity.tolerances import FORMULA_64, assert_close
from nplm.train import job as training
from nplm.train.checkpoint import load_checkpoint
from nplm.train.config import ScheduleConfig, TrainConfig

pytestmark = pytest.mark.cli

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 40
NUMBERS = shlex.split(
    "--context --dropout --steps --epochs --batch-size --accumulate --lr --schedule.warmup-steps "
    "--schedule.min-lr --stop.patience --stop.delta --stop.baseline --stop.start-from-epoch "
    "--stop.stopping-threshold --stop.divergence-threshold --average.decay --average.start "
    "--average.every --average.swa-lr --average.anneal --layer-decay --spike-threshold --beta1 "
    "--beta2 --weight-decay --clip-norm --eval-every --log-every --sample-length --seed --threads"
)
SMALL = shlex.split(
    "--steps 4 --eval-every 2 --log-every 1 --batch-size 2 --context 16 --sample-length 20 "
    "--schedule.warmup-steps 1"
)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def run(capsys, *words):
    """(exit code, standard output, standard error) of `nplm WORDS`."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:  # tyro's own messages
        code = stop.code
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture
def trained(capsys, tmp_path, text):
    code, out, err = run(capsys, "train", "--data", text, "--out", tmp_path / "runs", *SMALL)
    assert code == 0, err
    folder = next((tmp_path / "runs").iterdir())
    return folder, out


def test_train_prints_the_plan_the_losses_a_sample_and_what_to_type_next(trained):
    folder, out = trained
    for part in ("text: 1,800 characters, 1,620 tokens", "parameters, context 16",
                 "4 updates of 32 tokens", "memory     about", "best       step 4", "left 0:00",
                 "step     2", "validation", "lr ", "norm ", "tok/s",
                 f"nplm generate {folder}"):  # fmt: skip
        assert part in out, part


def test_a_run_folder_has_the_final_layout(trained):
    folder, _ = trained
    described = json.loads((folder / "run.json").read_text())
    assert described["config"]["steps"] == 4
    assert described["config"]["schedule"]["name"] == "nanogpt"
    assert described["corpus"]["sha256"]
    assert {"python", "numpy", "nplm"} <= set(described["versions"])
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2, 3, 4]
    assert [("validation_loss" in m) for m in metrics] == [False, True, False, True]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [(s["step"], len(s["text"])) for s in samples] == [(2, 20), (4, 20)]
    checkpoint = load_checkpoint(folder / "checkpoints" / "step-00000004")
    assert {p.name for p in checkpoint.path.iterdir()} == {
        "MANIFEST.json", "model.safetensors", "optimizer.safetensors", "state.json",
        "tokenizer.json",
    }  # fmt: skip
    assert checkpoint.step == 4
    assert set(checkpoint.generators) == {"default"}
    assert checkpoint.loader
    assert checkpoint.progress["step"] == 4
    assert (folder / "checkpoints" / "best.json").exists()


def test_the_default_corpus_is_kept_in_the_run_folder(capsys, tmp_path):
    code, _, err = run(capsys, "train", "--out", tmp_path, *SMALL, "--eval-every", 4)
    assert code == 0, err
    folder = next(tmp_path.iterdir())
    corpus = (folder / "corpus.txt").read_text()
    assert len(corpus) > 100_000
    assert json.loads((folder / "run.json").read_text())["corpus"]["characters"] == len(corpus)


def test_equal_seeds_give_equal_runs(capsys, tmp_path, text):
    for name in ("a", "b"):
        run(capsys, "train", "--data", text, "--out", tmp_path / name, *SMALL, "--dropout", 0.1)
    a, b = (next((tmp_path / name).iterdir()) for name in ("a", "b"))
    assert (a / "samples.jsonl").read_bytes() == (b / "samples.jsonl").read_bytes()
    weights = "checkpoints/step-00000004/model.safetensors"
    assert (a / weights).read_bytes() == (b / weights).read_bytes()


def test_every_training_flag_is_obeyed(capsys, tmp_path, text):
    code, out, err = run(
        capsys, "train", "--data", text, "--out", tmp_path / "runs", *SMALL, "--preset",
        "tiny-llama", "--accumulate", 3, "--clip-norm", "None",
        "--schedule.name", "warmup_constant",
        "--dtype", "float64", "--threads", 1, "--name", "mine", "--seed", 5, "--lr", 2e-3,
        "--weight-decay", 0, "--beta1", 0.8, "--beta2", 0.95,
    )  # fmt: skip
    assert code == 0, err
    assert "4 updates of 96 tokens (0.2 times the text), on cpu in float64" in out
    folder = next((tmp_path / "runs").iterdir())
    assert folder.name.endswith("_mine")
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["lr"] == 2e-3
    assert metrics[0]["tokens"] == 96
    checkpoint = load_checkpoint(folder / "checkpoints" / "step-00000004")
    assert checkpoint.model["wte.weight"].dtype == "float64"
    assert checkpoint.state["config"]["norm"] == "rms"


def test_training_on_torch_cpu_gives_numpys_losses(capsys, tmp_path, text):
    pytest.importorskip("torch", reason="the second namespace is PyTorch: pip install torch")
    losses = []
    for device in ("cpu", "torch:cpu"):
        out = tmp_path / device
        code, _, err = run(capsys, "train", "--data", text, "--out", out, *SMALL, "--device",
                           device, "--dtype", "float64")  # fmt: skip
        assert code == 0, err
        lines = (next(out.iterdir()) / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert_close(losses[0], losses[1], FORMULA_64, "loss")


def test_generate_is_repeatable_and_obeys_its_flags(capsys, trained):
    folder, _ = trained
    texts = {}
    for name, flags in {
        "one": [], "again": [], "seed": ["--seed", 2], "greedy": ["--temperature", 0],
        "top": ["--top-k", 1],
    }.items():  # fmt: skip
        code, out, err = run(capsys, "generate", folder, "--prompt", "the ", "--length", 40, *flags)
        assert code == 0, err
        assert out.startswith("the ")
        assert len(out) == len("the ") + 40 + 1
        texts[name] = out
    assert texts["one"] == texts["again"]
    assert texts["one"] != texts["seed"]
    assert texts["greedy"] == texts["top"]


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_its_exit_code(capsys, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    make_files(tmp_path, TEXT)
    words, code, says = BAD[case]
    if code == 2 and words[0] == "train" and "ok.txt" not in words:
        words = ["train", "--data=empty.txt", *words[1:]]  # refused before it is read
    got, _, err = run(capsys, *words)
    assert (got, says in err) == (code, True), (got, err)
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()
    assert err.startswith(f"nplm {words[0]}: ")
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("flag", NUMBERS)
def test_a_word_for_a_number_is_refused_by_the_name_of_its_flag(capsys, flag):
    code, _, err = run(capsys, "train", flag, "many")
    assert (code, flag in err) == (2, True), err


def test_every_flag_has_a_case_of_bad_input():
    used = {word for words, _, _ in BAD.values() for word in words}
    rows = " ".join(OTHERS)
    for config in (TrainCommand, GenerateConfig):
        for flag in arguments.flags_of(config):
            assert flag in used or f"`{flag}`" in rows or flag == "--help", flag


def test_generate_refuses_what_the_model_cannot_do(capsys, trained):
    folder, _ = trained
    for flags, code, says in [
        (["--prompt", "Ω"], 3, "U+03A9"),
        (["--prompt", ""], 3, "at least one token"),
        (["--length", "0", "--temperature", "-1"], 2, "got 0; temperature: expected 0 or a"),
        (["--top-k", "0"], 2, "top_k: expected at least 1, got 0"),
        (["--seed", str(2**64)], 2, "seed: expected -2^63 to 2^64 - 1"),
    ]:
        got, _, err = run(capsys, "generate", folder, *flags)
        assert (got, says in err) == (code, True), (flags, got, err)


def test_a_damaged_checkpoint_is_refused_by_name(capsys, trained):
    folder, _ = trained
    for weights in folder.glob("checkpoints/*/model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    code, _, err = run(capsys, "generate", folder)
    assert code == 3
    assert "model.safetensors" in err


def edit(folder, name, change):
    """Change the JSON file `name` of every checkpoint and seal the checkpoint again."""
    for path in folder.glob("checkpoints/step-*"):
        content = {p.name: p.read_bytes() for p in path.iterdir() if p.name != files.MANIFEST}
        content[name] = json.dumps(change(json.loads(content[name]))).encode()
        shutil.rmtree(path)
        writers = {n: (lambda to, data=data: to.write_bytes(data)) for n, data in content.items()}
        files.write_directory(path, writers)


def test_a_config_that_does_not_fit_the_weights_builds_no_model(capsys, monkeypatch, trained):
    folder, _ = trained
    state = next(folder.glob("checkpoints/*/state.json"))
    whole = json.loads(state.read_text())["config"]
    cases = [
        ({**whole, "n_layer": 10**7}, "n_layer: 10000000, the weights have 4 blocks"),
        ({**whole, "n_embd": 65536}, "wte.weight: expected the shape (29, 65536), got (29, 128)"),
        ({**whole, "n_hidden": 10**9}, "blocks.0.mlp.proj.weight: expected the shape"),
        ({**whole, "context": 10**9}, "wpe.weight"),
        ({**whole, "vocab_size": 10**9}, "vocab_size: 1000000000, the tokenizer has 29"),
        ({**whole, "n_head": 0}, "n_head: expected a positive integer, got 0"),
        ({**whole, "n_head": "4"}, "n_head"),
        ({**whole, "rope_theta": 10**400}, "too large"),
        ({**whole, "colour": 3}, "'colour' unknown"),
        ({k: v for k, v in whole.items() if k != "n_layer"}, "'n_layer' missing"),
        ([1, 2], "config is a list, expected a mapping"),
        ("char", "config is a str, expected a mapping"),
        (None, "no model config"),
    ]

    def refuse(config):
        pytest.fail(f"a model was built from {config}")

    monkeypatch.setattr("nplm.cli.generate.Decoder", refuse)
    for config, says in cases:
        edit(folder, "state.json", lambda state, config=config: {**state, "config": config})
        code, _, err = run(capsys, "generate", folder)
        assert (code, says in err) == (3, True), (config, code, err)
        assert "checkpoints/step-" in err
        assert len(err.splitlines()) == 1


def test_a_model_of_other_layers_than_the_weights_is_refused(capsys, trained):
    folder, _ = trained
    whole = json.loads(next(folder.glob("checkpoints/*/state.json")).read_text())["config"]
    for change in ({"bias": True}, {"norm": "rms", "bias": True}, {"tied": False, "n_kv_head": 1}):
        edit(folder, "state.json", lambda s, c=change: {**s, "config": {**whole, **c}})
        code, _, err = run(capsys, "generate", folder)
        assert (code, "state.json" in err, len(err.splitlines())) == (3, True, 1), (change, err)


def test_a_tokenizer_that_is_none_is_refused_by_name(capsys, trained):
    folder, _ = trained
    for value in ([], "abc", 3, {}, {"kind": [], "characters": "ab"}, {"kind": "character"},
                  {"kind": "character", "characters": ["a"]},
                  {"kind": "character", "characters": "ba"}):  # fmt: skip
        edit(folder, "tokenizer.json", lambda _, value=value: value)
        code, _, err = run(capsys, "generate", folder)
        assert (code, "tokenizer.json: " in err) == (3, True), (value, code, err)


@pytest.mark.parametrize("some", ["abcab cab ", "\U0001f98a 'tis -x\t\n", "The end "])
def test_the_command_that_train_prints_and_the_default_prompt_work(capsys, tmp_path, some):
    (tmp_path / "text.txt").write_text(some * 60, encoding="utf-8")
    runs = tmp_path / "my runs"
    code, out, err = run(capsys, "train", "--data", tmp_path / "text.txt", "--out", runs, *SMALL)
    assert code == 0, err
    shown = [shlex.split(line) for line in out.split("next       nplm ")[1].split("  nplm ")]
    assert "--prompt" in shown[0]
    assert len(shown) == 2
    for words in (*shown, ["generate", next(runs.iterdir())]):
        code, out, err = run(capsys, *words, "--length", 5)
        assert code == 0, err
    assert out[0] == ("\n" if "\n" in some else min(some))


def test_devices_that_are_not_there_are_refused_before_any_work(capsys, text, monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch's devices: pip install torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device, says in [
        ("torch", "expected 'torch:cpu', 'cuda' or 'cuda:N'"),
        ("torch:cuda", "expected 'torch:cpu'"), ("torch:cpu:1", "expected 'torch:cpu'"),
        ("cuda:99", "expected at most 'cuda:0'"), ("cuda:x", "expected 'torch:cpu'"),
    ]:  # fmt: skip
        for words in (["train", "--data", text], ["generate", text.parent]):
            code, out, err = run(capsys, *words, "--device", device)
            assert (code, out, says in err) == (1, "", True), (device, code, err)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "sees no CUDA device" in run(capsys, "train", "--data", text, "--device", "cuda:99")[2]


def test_a_loss_that_is_not_finite_ends_with_4(capsys, tmp_path, text):
    code, _, err = run(capsys, "train", "--data", text, "--out", tmp_path / "runs", *SMALL, "--lr",
                       1e30, "--clip-norm", "None")  # fmt: skip
    assert code == 4, err
    assert "nothing was updated" in err


@pytest.mark.parametrize("steps", [1, 2])
def test_weights_that_the_last_update_broke_end_with_4(capsys, tmp_path, text, steps):
    code, _, err = run(capsys, "train", "--data", text, "--out", tmp_path / "runs", *SMALL,
                         "--steps", steps, "--eval-every", 1, "--lr", 1e300, "--clip-norm", "None",
                         "--schedule.warmup-steps", 0)  # fmt: skip
    assert (code, "the validation loss is nan after step 1" in err) == (4, True), err


def test_a_float64_run_writes_in_float64(capsys, trained, tmp_path, text):
    code, _, err = run(capsys, "train", "--data", text, "--out", tmp_path / "r64", *SMALL,
                       "--dtype", "float64")  # fmt: skip
    assert code == 0, err
    model, _ = generate.load(next((tmp_path / "r64").iterdir()))
    assert {p.dtype.name for p in model.parameters()} == {"float64"}


def test_a_missing_torch_is_said_in_one_sentence(text, tmp_path):
    code = (
        f"{WITHOUT_TORCH}from nplm.cli import main\n"
        f"sys.exit(main(['train', '--data', {str(text)!r}, '--device', 'torch:cpu']))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                         cwd=tmp_path)  # fmt: skip
    assert out.returncode == 1
    assert "pip install torch" in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1


def test_help_and_version_load_no_numpy(capsys):
    code = "import sys; from nplm.cli import main; main([]); main(['--help'])\n"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "nplm train [--data FILE]" in out.stdout
    for verb in ("train", "generate"):
        assert run(capsys, verb, "--help")[0] == 0
    assert run(capsys, "--version")[1].startswith("nplm 0.")


@pytest.mark.parametrize(("package", "code", "says"), [
    ("safetensors", 1, "pip install safetensors"),
    ("threadpoolctl", 1, "pip install threadpoolctl"),
    ("tyro", 2, "pip install tyro tqdm"),
])  # fmt: skip
def test_a_missing_package_is_said_before_any_work(
    capsys, tmp_path, monkeypatch, text, package, code, says
):
    for name in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)  # `import` raises ModuleNotFoundError
    monkeypatch.delitem(sys.modules, "nplm.cli.generate", raising=False)
    commands = [["train", "--data", text, "--out", tmp_path / "runs", *SMALL, "--threads", 1]]
    for words in [*commands, *([["generate", tmp_path]] if package == "tyro" else [])]:
        got, out, err = run(capsys, *words)
        assert (got, out, says in err) == (code, "", True), (got, out, err)
        assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_without_tqdm_there_is_no_bar_and_a_model(capsys, tmp_path, monkeypatch, text):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    code, out, err = run(capsys, "train", "--data", text, "--out", tmp_path / "runs", *SMALL)
    assert (code, err) == (0, "")
    assert "step     4" in out


def test_a_checkpoint_is_kept_before_anything_is_printed_about_it(tmp_path, text):
    def full(line):
        raise OSError(28, "No space left on device")

    config = TrainConfig(
        data=(text,), steps=2, eval_every=1, context=16, batch_size=2, out=tmp_path / "runs",
        schedule=ScheduleConfig(warmup_steps=0),
    )  # fmt: skip
    with pytest.raises(OSError, match="No space"):
        training.run(training.prepare(config), full)
    load_checkpoint(next((tmp_path / "runs").glob("*/checkpoints/step-00000001")))
