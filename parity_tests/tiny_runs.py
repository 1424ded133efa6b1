"""What tests of verbs share: two small runs, `nplm` as they call it, a Python without torch."""

from nplm.cli import main

TEXT = "the quick brown fox jumps over the lazy dog.\n" * 40
TINY = ["--log-every", "99", "--batch-size", "2", "--context", "8", "--sample-length", "12",
        "--schedule.warmup-steps", "1"]  # fmt: skip


def make_runs(folder):
    """The folders of a run of four updates and of one of two."""
    (folder / "text.txt").write_text(TEXT)
    runs = []
    for name, extra in (("long", ["--steps", "4", "--seed", "1"]), ("short", ["--steps", "2"])):
        words = ["train", "--data", str(folder / "text.txt"), "--out", str(folder / "runs"),
                 "--name", name, "--eval-every", "2", *TINY, *extra]  # fmt: skip
        assert main(words) == 0
        runs += (folder / "runs").glob(f"*_{name}")
    return runs


def nplm(capsys, *words):
    """(exit code, standard output, standard error) of `nplm WORDS`; an error is one sentence."""
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == (code != 0), err
    assert not code or err.startswith(f"nplm {words[0]}: ")
    return code, out, err


def snapshot(folder):
    """Every file below a folder, with its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


WITHOUT_TORCH = """\
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == 'torch': raise ModuleNotFoundError('blocked', name=name)
sys.meta_path.insert(0, NoTorch())
"""  # what a fresh interpreter runs first, so that torch cannot be imported
