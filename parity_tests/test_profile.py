"""Profiles of training and of single ops: every op once, every second once, nothing left behind."""

import json
import time

import numpy as np
import pytest

import nplm
from nplm.autograd.op import Op
from nplm.backend import threads
from nplm.bench import rounds
from nplm.bench.ops import Ops, described, made
from nplm.bench.profile import ENGINE, profile
from nplm.bench.settings import Setting
from nplm.bench.trainer import Trainer
from nplm.models import DecoderConfig

pytestmark = pytest.mark.cli

TINY = Setting(
    DecoderConfig(vocab_size=11, context=8, n_layer=2, n_head=2, n_embd=8, activation="gelu_tanh"),
    batch_size=2,
)


@pytest.fixture(autouse=True)
def same_threads():
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


# ---- ops and profiles ----------------------------------------------------------------------------
def test_recorded_ops_can_be_run_alone_and_by_torch():
    trainer = Ops(TINY, 1)
    calls = {call["name"]: call for call in trainer.calls()}
    assert {"linear", "embedding", "layer_norm"} <= calls.keys()
    json.dumps(list(calls.values()))
    assert all(len(trainer.op(call, 2)) in (0, 2) for call in calls.values())
    assert len(trainer.op(calls["linear"], 2)) == 2
    if rounds.installed("torch"):
        from nplm.bench.torch_ops import TorchOps

        theirs = TorchOps(TINY, 1)
        assert all(len(theirs.op(call, 2)) in (0, 2) for call in calls.values())
        assert len(theirs.op(calls["linear"], 2)) == 2


def test_described_arrays_come_back_in_shape_dtype_and_layout():
    x = np.zeros((2, 3, 4), np.float32).transpose(2, 0, 1)
    again = made(described(x))
    assert (again.shape, again.dtype) == (x.shape, x.dtype)
    assert np.argsort(again.strides).tolist() == np.argsort(x.strides).tolist()
    ids = made(described(np.array([[4, 0], [2, 1]])))
    assert ids.dtype == np.int64
    assert ids.max() <= 4
    assert made(described(None)) is None


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_profile_sees_every_op_once_on_any_thread_and_shares_add_up(n_threads, monkeypatch):
    from nplm.train import shards

    monkeypatch.setattr(shards, "WORTHWHILE", 0)  # or so small a model stays on one thread
    trainer = Trainer(TINY, n_threads)
    trainer.step()
    called, call = {}, Op.__call__

    def counting(op, *args, **options):
        called[op.name] = called.get(op.name, 0) + 1
        return call(op, *args, **options)

    monkeypatch.setattr(Op, "__call__", counting)
    with profile() as found:
        trainer.backward()
    seen = {row.name: row.calls for row in found.rows() if row.part == "forward"}
    assert seen == called
    assert {"linear", "layer_norm", "embedding"} <= seen.keys()
    assert seen["linear"] % n_threads == 0  # of every shard
    with nplm.reference(), profile() as found:
        trainer.step()
    parts = {(row.name, row.part) for row in found.rows()}
    assert ("linear", "backward") in parts
    updates = {name for name, part in parts if part == "update"}
    assert updates == {"adam_update", "clip_grad_norm_"}  # what clipping calls is part of it
    assert not {"clamp", "div"} & {name for name, part in parts if part == "forward"}
    data = found.to_json()
    assert sum(row["share"] for row in data["rows"]) == pytest.approx(1.0)
    assert data["rows"][-1]["name"] == ENGINE
    assert all(row["seconds"] >= 0 for row in data["rows"])
    for name in (*seen, ENGINE, "adam_update"):
        assert name in found.table()


def test_work_of_all_threads_is_counted_once():
    def sleep():
        return threads.run([lambda: time.sleep(0.03)] * 2)

    with profile() as found:
        sleep()
    assert found.total >= 0.06  # seconds of work in some 0.03 that pass
    with profile() as found:
        found.timed("op", "forward", sleep)()  # a kernel that splits its rows
    assert found.total == found.seconds
    assert [row.name for row in found.rows()] == ["op", ENGINE]


def test_a_profile_counts_bytes_and_leaves_nothing_behind():
    from nplm.autograd import op
    from nplm.train import step

    before = op.choose, threads.run, step.clip_grad_norm_
    x = nplm.ones(3, 5, requires_grad=True)
    with profile() as found:
        (x * 2.0).sum().backward()
    assert (op.choose, threads.run, step.clip_grad_norm_) == before
    rows = {(row.name, row.part): row for row in found.rows()}
    assert rows["mul", "forward"].bytes == 2 * 15 * 4  # x and the product
    assert rows["mul", "backward"].bytes == 2 * 15 * 4  # dy and dx
    with pytest.raises(ZeroDivisionError), profile():
        raise ZeroDivisionError
    assert (op.choose, threads.run, step.clip_grad_norm_) == before


def test_what_runs_in_a_profile_gives_the_same_bits():
    losses = []
    for watched in (False, True):
        trainer = Trainer(TINY, 1)
        if watched:
            with profile():
                losses.append([trainer.step() for _ in range(3)])
        else:
            losses.append([trainer.step() for _ in range(3)])
    assert losses[0] == losses[1]
