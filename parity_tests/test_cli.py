"""The command line: what it prints, what it leaves on disk, its sentences and exit codes."""

import json
import subprocess
import sys

import pytest

from nplm.cli import main
from nplm.train.checkpoint import load_checkpoint

pytestmark = pytest.mark.cli

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 40
SMALL = [
    "--steps",
    "4",
    "--eval-every",
    "2",
    "--log-every",
    "1",
    "--batch-size",
    "2",
    "--context",
    "16",
    "--sample-length",
    "20",
    "--schedule.warmup-steps",
    "1",
]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def run(capsys, *arguments):
    """(exit code, standard output, standard error) of `nplm ARGUMENTS`."""
    try:
        code = main([str(a) for a in arguments])
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
    for part in ("text: 1,800 characters", "parameters, context 16", "4 updates of 32 tokens",
                 "step     2", "validation", "lr ", "norm ", "tok/s",
                 f"nplm generate {folder}"):  # fmt: skip
        assert part in out, part


def test_a_run_folder_has_the_final_layout(trained):
    folder, _ = trained
    described = json.loads((folder / "run.json").read_text())
    assert described["config"]["steps"] == 4
    assert described["config"]["schedule"]["name"] == "cosine"
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
    assert set(checkpoint.generators) == {"default", "batches"}
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
        "tiny-llama", "--accumulate", 3, "--clip-norm", "None", "--schedule.name", "constant",
        "--dtype", "float64", "--threads", 1, "--name", "mine", "--seed", 5, "--lr", 2e-3,
        "--weight-decay", 0, "--beta1", 0.8, "--beta2", 0.95, "--schedule.min-lr", 0,
    )  # fmt: skip
    assert code == 0, err
    assert "4 updates of 96 tokens, on cpu in float64" in out
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
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


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


BAD = {
    # name: (arguments, exit code, what the sentence says); docs/cli.md has the same table
    "unknown verb": (["trian"], 2, "did you mean 'train'?"),
    "unknown flag": (["train", "--step", "3"], 2, "did you mean --steps?"),
    "two unknown flags": (["train", "--lrr", "3", "--sed", "1"], 2, "did you mean --seed?"),
    "unknown preset": (["train", "--preset", "tiny-lama"], 2, "did you mean 'tiny-llama'?"),
    "a number expected": (["train", "--steps", "many"], 2, "--steps"),
    "out of range": (["train", "--steps", "0", "--lr", "-1"], 2, "lr: expected a positive number"),
    "warm-up too long": (["train", "--steps", "50"], 2, "expected fewer than steps=50, got 100"),
    "unknown device": (["train", "--device", "gpu"], 1, "expected 'cpu', 'torch:cpu' or 'cuda'"),
    "missing file": (["train", "--data", "nowhere.txt"], 3, "nowhere.txt"),
    "a folder": (["train", "--data", "."], 3, "is a folder, expected a file"),
    "empty file": (["train", "--data", "empty.txt"], 3, "empty"),
    "too short": (["train", "--data", "short.txt"], 3, "needs at least 65 tokens"),
    "not UTF-8": (["train", "--data", "latin.txt"], 3, "UTF-8"),
    "not a run": (["generate", "."], 3, "run.json"),
    "unwritable folder": (["train", "--data", "ok.txt", "--out", "ok.txt/runs"], 5, "ok.txt"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_its_exit_code(capsys, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("a few words")
    (tmp_path / "latin.txt").write_bytes("naïve".encode("latin-1") * 100)
    (tmp_path / "ok.txt").write_text(TEXT)
    arguments, code, says = BAD[case]
    got, _, err = run(capsys, *arguments)
    assert (got, says in err) == (code, True), (got, err)
    assert "Traceback" not in err
    if says != "--steps":  # tyro's own box for a value of the wrong type
        assert err.startswith(f"nplm {arguments[0]}: ")
        assert len(err.strip().splitlines()) == 1


def test_generate_refuses_what_the_model_cannot_do(capsys, trained):
    folder, _ = trained
    for flags, code, says in [
        (["--prompt", "Ω"], 3, "U+03A9"),
        (["--prompt", ""], 3, "at least one token"),
        (["--length", "0"], 2, "length: expected at least 1, got 0"),
        (["--temperature", "-1"], 2, "temperature >= 0"),
        (["--top-k", "0"], 2, "top_k >= 1"),
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


def test_a_loss_that_is_not_finite_ends_with_4(capsys, tmp_path, text):
    code, _, err = run(capsys, "train", "--data", text, "--out", tmp_path / "runs", *SMALL, "--lr",
                       1e30, "--clip-norm", "None", "--schedule.min-lr", 0)  # fmt: skip
    assert code == 4, err
    assert "nothing was updated" in err


def test_a_missing_torch_is_said_in_one_sentence(text, tmp_path):
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': raise ModuleNotFoundError('blocked', name=name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "from nplm.cli import main\n"
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
    assert "nplm train --data FILE" in out.stdout
    for verb in ("train", "generate"):
        assert run(capsys, verb, "--help")[0] == 0
    assert run(capsys, "--version")[1].startswith("nplm 0.")
