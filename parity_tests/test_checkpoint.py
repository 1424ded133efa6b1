"""Checkpoints come back whole and exact, or are refused with the file and the reason."""

import dataclasses
import json
import math
import os

import numpy as np
import pytest
from stored import (
    Config,
    FakeTensor,
    Holder,
    alike,
    example,
    new_run,
    same,
    save_example,
)

from nplm import files
from nplm.data import CharTokenizer
from nplm.errors import CheckpointError, StorageError
from nplm.train.checkpoint import (
    best_checkpoint,
    latest_checkpoint,
    load_checkpoint,
    mark_best,
    save_checkpoint,
)

pytestmark = pytest.mark.cli


def test_a_checkpoint_comes_back_whole_and_exact(tmp_path):
    run = new_run(tmp_path)
    path = save_example(run)
    assert path == run.checkpoints / "step-00000500"
    assert sorted(os.listdir(path)) == [
        "MANIFEST.json", "model.safetensors", "optimizer.safetensors", "state.json",
        "tokenizer.json",
    ]  # fmt: skip
    model, optimizer, scheduler, generators = example()
    back = load_checkpoint(path)
    assert back.step == 500
    for name, tensor in model.state.items():
        same(back.model[name], tensor.array)
    expected = {
        "state": {
            index: {k: v.array if isinstance(v, FakeTensor) else v for k, v in entry.items()}
            for index, entry in optimizer.state["state"].items()
        },
        "param_groups": optimizer.state["param_groups"],
    }
    expected["state"][0]["step"] = np.asarray(expected["state"][0]["step"])
    alike(back.optimizer, expected)
    alike(back.scheduler, scheduler.state)
    alike(back.generators, {name: each.state for name, each in generators.items()})
    assert back.tokenizer == CharTokenizer("abc").to_dict()
    alike(back.state["config"], dataclasses.asdict(Config()))
    assert back.state["metrics"] == {"val_loss": math.inf}


def test_optimizer_tensors_have_torchs_path_as_their_name(tmp_path):
    stored = files.load_tensors(save_example(new_run(tmp_path)) / "optimizer.safetensors")
    assert set(stored) == {"state.0.step", "state.0.exp_avg", "state.3.exp_avg"}


def test_tied_weights_are_stored_once_and_come_back_under_both_names(tmp_path):
    path = save_example(new_run(tmp_path))
    assert set(files.load_tensors(path / "model.safetensors")) == {"wte.weight", "h.0.w"}
    back = load_checkpoint(path)
    assert back.state["ties"] == {"head.weight": "wte.weight"}
    assert back.model["head.weight"] is back.model["wte.weight"]


def test_equal_weights_that_are_not_tied_stay_apart(tmp_path):
    a = np.zeros(3)
    model = Holder({"a": FakeTensor(a), "b": FakeTensor(a.copy())})
    back = load_checkpoint(save_checkpoint(new_run(tmp_path), 0, model=model))
    assert back.model["a"] is not back.model["b"]
    assert back.state["ties"] == {}


def test_a_checkpoint_of_a_model_alone_has_nothing_else(tmp_path):
    path = save_checkpoint(new_run(tmp_path), 1, model=Holder({"a": FakeTensor(np.zeros(3))}))
    back = load_checkpoint(path)
    assert (back.optimizer, back.scheduler, back.generators, back.tokenizer) == (None,) * 4
    assert back.state["config"] is None
    assert not (path / "optimizer.safetensors").exists()


def test_torchs_adamw_goes_on_exactly_from_a_checkpoint(tmp_path):
    torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")

    def build():
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2, dtype=torch.float64)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        return net, optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4])

    def steps(net, optimizer, scheduler, n):
        for _ in range(n):
            optimizer.zero_grad()
            net(torch.ones(1, 3, dtype=torch.float64)).pow(2).sum().backward()
            optimizer.step()
            scheduler.step()

    net, optimizer, scheduler = build()
    steps(net, optimizer, scheduler, 3)
    weights = {k: FakeTensor(v.numpy().copy()) for k, v in net.state_dict().items()}
    milestones = dict(scheduler.state_dict())
    path = save_checkpoint(
        new_run(tmp_path), 3, model=Holder(weights), optimizer=optimizer, scheduler=scheduler
    )
    steps(net, optimizer, scheduler, 3)

    other, other_optimizer, other_scheduler = build()
    back = load_checkpoint(path)
    other.load_state_dict({k: torch.from_numpy(v) for k, v in back.model.items()})
    state = {
        index: {k: torch.from_numpy(v) for k, v in entry.items()}
        for index, entry in back.optimizer["state"].items()
    }
    other_optimizer.load_state_dict({**back.optimizer, "state": state})
    other_scheduler.load_state_dict(back.scheduler)
    assert back.scheduler == milestones
    steps(other, other_optimizer, other_scheduler, 3)
    assert torch.equal(other.weight, net.weight)
    assert torch.equal(other.bias, net.bias)
    assert other_scheduler.get_last_lr() == scheduler.get_last_lr()


def test_the_latest_checkpoint_is_the_one_of_the_highest_step_and_rests_are_ignored(tmp_path):
    run = new_run(tmp_path)
    assert latest_checkpoint(run) is None
    for step in (900, 1000, 30):
        save_example(run, step)
    for rest in (".tmp-1-ab", "step-9", "step-00009999x", "step-00009999.bak"):
        (run.checkpoints / rest).mkdir()
    assert latest_checkpoint(run) == latest_checkpoint(run.path)
    assert latest_checkpoint(run).name == "step-00001000"
    with pytest.raises(CheckpointError, match="could not be listed: No such file"):
        latest_checkpoint(tmp_path / "nowhere")


def test_best_json_names_the_best_step(tmp_path):
    run = new_run(tmp_path)
    assert best_checkpoint(run) is None
    with pytest.raises(CheckpointError, match=r"step 30 has no checkpoint; save it first"):
        mark_best(run, 30)
    save_example(run, 30)
    mark_best(run, 30, {"val_loss": np.float64(1.5)})
    assert json.loads((run.checkpoints / "best.json").read_text())["step"] == 30
    assert best_checkpoint(run) == run.checkpoints / "step-00000030"
    files.write_json(run.checkpoints / "best.json", {"step": 31})
    with pytest.raises(CheckpointError, match=r"names step 31, which has no checkpoint"):
        best_checkpoint(run)


def test_a_checkpoint_that_cannot_be_written_or_read_says_why(tmp_path):
    run = new_run(tmp_path)
    path = save_example(run)
    with pytest.raises(StorageError, match="it exists already"):
        save_example(run)
    with pytest.raises(ValueError, match=r"step must be in \[0, 10\^8\), got -1"):
        save_example(run, -1)
    model = Holder({"a": FakeTensor(np.zeros(3))})
    with pytest.raises(ValueError, match=r"scheduler\.f: a function cannot be stored"):
        save_checkpoint(run, 2, model=model, scheduler=Holder({"f": lambda: 0}))
    assert os.listdir(run.checkpoints) == ["step-00000500"]
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged: expected \d+ bytes"):
        load_checkpoint(path)


def rewrite(folder, target, **changes):
    """A folder that verifies, but with other content."""
    content = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != files.MANIFEST}
    for name, data in changes.items():
        name = name.replace("__", ".")
        content.pop(name) if data is None else content.update({name: data})
    return files.write_directory(
        target, {n: lambda p, d=d: files.write_bytes(p, d) for n, d in content.items()}
    )


def test_a_sound_folder_that_is_no_checkpoint_of_this_version_is_refused(tmp_path):
    path = save_example(new_run(tmp_path))
    state = json.loads((path / "state.json").read_text())

    def load(name, **changes):
        return load_checkpoint(rewrite(path, tmp_path / name, **changes))

    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing, so this is not"):
        load("a", model__safetensors=None)
    newer = json.dumps(state | {"format_version": 4}).encode()
    with pytest.raises(CheckpointError, match=r"version 4 was written by a newer nplm"):
        load("b", state__json=newer)
    with pytest.raises(CheckpointError, match=r"state\.json: not the state of a checkpoint"):
        load("c", state__json=b'{"format_version": 1}')
    with pytest.raises(CheckpointError, match=r"tensor 'state\.0\.step' is missing"):
        load("d", optimizer__safetensors=None)
    with pytest.raises(CheckpointError, match=r"the ties of its weights cannot be read"):
        load("f", state__json=json.dumps(state | {"ties": []}).encode())
    astray = json.dumps(state | {"ties": {"head": "nothing"}}).encode()
    with pytest.raises(CheckpointError, match=r"'head' is tied to 'nothing', which is missing"):
        load("e", state__json=astray)
