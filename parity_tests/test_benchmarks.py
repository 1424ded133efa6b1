"""The benchmarks run, and what they compare agrees.  How long they take is no test."""

import json
import subprocess
import sys

import pytest
from house import ROOT

from nplm.parity.tolerances import RUN_32, assert_close

pytestmark = pytest.mark.run


def test_the_shakespeare_benchmark_keeps_both_engines_together(tmp_path):
    pytest.importorskip("torch", reason="the benchmark compares with PyTorch: pip install torch")
    text, out = tmp_path / "input.txt", tmp_path / "figures.json"
    text.write_text("It is a truth universally acknowledged, that a single man ... " * 30)
    command = [sys.executable, "-m", "benchmarks.shakespeare", "--data", str(text), "--steps", "4",
               "--warmup-steps", "1", "--json", str(out)]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    figures = json.loads(out.read_text())
    ours, theirs = figures["validation_loss_nplm"], figures["validation_loss_torch"]
    assert_close(ours, theirs, RUN_32, "validation loss")
    assert figures["apart"] == abs(ours - theirs)


def test_tiny_shakespeare_is_at_hand_for_the_published_setting():
    path = ROOT.parent / "shared" / "data" / "tiny_shakespeare.txt"
    if not path.exists():
        pytest.skip("tiny_shakespeare.txt is not shipped: it is looked for in ../shared/data")
    from nplm.train.config import TrainConfig
    from nplm.train.job import prepare

    job = prepare(TrainConfig(data=(path,)))
    assert job.tokenizer.vocab_size == 65
    assert job.model.num_parameters() == 804_096
    assert len(job.batches.tokens) == 1_003_854
