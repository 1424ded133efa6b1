"""Threads for NumPy's work: how many, what runs on them, what comes back out of them."""

import contextvars
import os
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nplm
from nplm.backend import numpy as numpy_namespace
from nplm.backend import threads
from nplm.backend.numpy_kernels import updates
from nplm.backend.scratch import ones, scratch
from nplm.errors import ConfigError
from nplm.optim.flat import flatten

pytestmark = pytest.mark.step


@pytest.fixture(autouse=True)
def _put_back():
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


def default_in(environment):
    """What a fresh process takes without being told."""
    clean = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    code = "import nplm; print(nplm.get_num_threads())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return int(done.stdout)


# ---- how many ------------------------------------------------------------------------------------
def test_the_default_is_the_physical_cores_or_what_the_environment_allows():
    assert default_in({}) == threads.physical_cores()
    assert default_in({"OMP_NUM_THREADS": "1"}) == 1
    assert default_in({"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "x"}) == 1
    assert default_in({"OMP_NUM_THREADS": "1000"}) == threads.physical_cores()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="affinity is Linux's")
def test_a_process_held_on_one_core_has_one():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert threads.physical_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("quota", "cores"), [
    ("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("max 100000", 1 << 20),
    ("nonsense", 1 << 20),
])  # fmt: skip
def test_a_container_has_the_cores_that_its_quota_pays_for(tmp_path, quota, cores):
    (tmp_path / "cpu.max").write_text(quota)
    assert threads._cgroup_cores(str(tmp_path)) == cores


def test_the_older_quota_is_read_too(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("400000\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert threads._cgroup_cores(str(tmp_path)) == 4
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert threads._cgroup_cores(str(tmp_path)) == 1 << 20


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2", None])
def test_a_number_of_threads_is_a_positive_integer(n):
    with pytest.raises(ConfigError, match="set_num_threads: expected an integer of at least 1"):
        nplm.set_num_threads(n)


# ---- running -------------------------------------------------------------------------------------
def test_results_come_in_the_order_of_the_tasks():
    tasks = [lambda i=i: (time.sleep(0.01 * (3 - i)), i)[1] for i in range(4)]
    assert threads.run(tasks) == [0, 1, 2, 3]


def test_the_first_error_comes_out_after_all_tasks_have_ended():
    ended = []

    def fails(name):
        raise ValueError(name)

    def slow():
        time.sleep(0.05)
        ended.append(1)

    with pytest.raises(ValueError, match="one"):
        threads.run([slow, lambda: fails("one"), lambda: fails("two"), slow])
    assert len(ended) == 2
    with pytest.raises(ValueError, match="here"):
        threads.run([lambda: fails("here"), slow])
    assert len(ended) == 3
    assert threads.run([lambda: 1, lambda: 2]) == [1, 2]  # the pool is as it was


def test_an_interrupted_caller_still_waits_for_its_tasks():
    ended = threading.Event()

    def slow():
        time.sleep(0.05)
        ended.set()

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        threads.run([interrupted, slow])
    assert ended.is_set()


def test_a_task_is_alone():
    threads.set_num_threads(3)
    assert threads.team() == 3
    assert threads.run([threads.team] * 3) == [1, 1, 1]
    assert threads.run([threads.team]) == [1]
    assert threads.team() == 3
    nested = threads.run([lambda: threads.run([threading.get_ident] * 3)] * 2)
    assert all(len(set(ids)) == 1 for ids in nested)  # inside of a task: one after the other


def test_tasks_see_the_callers_context_and_error_state():
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(7)
    with np.errstate(all="ignore"):
        assert threads.run([variable.get] * 3) == [7, 7, 7]
        threads.run([lambda: np.float32(1) / np.float32(0)] * 2)  # warns where it is not ignored


def test_an_op_is_silent_by_itself_in_a_quiet_block_and_in_its_tasks():
    infinite = lambda: nplm.tensor([0.0]).log().item()  # noqa: E731
    with np.errstate(all="raise"):
        assert infinite() == -np.inf
        with numpy_namespace.quiet():
            assert [infinite(), *threads.run([infinite] * 2)] == [-np.inf] * 3
        assert infinite() == -np.inf
        assert threads.run([infinite] * 2) == [-np.inf] * 2


def test_a_quiet_block_puts_the_error_state_back_and_so_does_an_error():
    def fail():
        with numpy_namespace.quiet(), numpy_namespace.quiet():
            raise KeyError(*set(np.geterr().values()))

    with np.errstate(all="raise"):
        before = np.geterr()
        for _ in range(2):
            with pytest.raises(KeyError, match="ignore"):
                fail()
            assert np.geterr() == before


@given(n=st.integers(0, 40), least=st.integers(0, 9), k=st.integers(1, 5))
def test_parts_cover_everything_once(n, least, k):
    threads.set_num_threads(k)
    seen, sizes = np.zeros(n, int), []

    def body(start, stop):
        seen[start:stop] += 1
        sizes.append(stop - start)

    threads.in_parts(n, body, least)
    assert (seen == 1).all()
    assert len(sizes) <= k
    assert all(size >= min(least, n) for size in sizes)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_threads_of_its_own():
    barrier = threading.Barrier(3)
    threads.run([lambda: barrier.wait(9)] * 3)  # two threads of the pool were needed at once
    time.sleep(0.05)  # and wait for work now
    child = os.fork()
    if child == 0:
        os._exit(0 if threads.run([lambda: 1] * 3) == [1, 1, 1] else 1)
    for _ in range(200):
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child waits for threads that it does not have")
    assert status == 0


def test_the_switch_interval_is_put_back_by_the_last_of_two():
    interval, inside, leave = sys.getswitchinterval(), threading.Event(), threading.Event()
    other = threading.Thread(target=threads.run, args=([inside.set, lambda: leave.wait(9)],))
    other.start()
    assert inside.wait(9)
    threads.run([lambda: None] * 2)
    assert sys.getswitchinterval() < interval
    leave.set()
    other.join()
    assert sys.getswitchinterval() == interval


# ---- the BLAS ------------------------------------------------------------------------------------
def blas_now():
    from threadpoolctl import threadpool_info

    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


def test_the_blas_is_as_it_was_after_the_block_and_after_an_error():
    from threadpoolctl import threadpool_limits

    with threadpool_limits(2, user_api="blas"):
        before = blas_now()
        with threads.one_blas_thread():
            assert set(blas_now()) == {1}
            assert threads.blas_is_held()
            with threads.one_blas_thread():
                assert set(blas_now()) == {1}
            assert threads.blas_is_held()
        assert blas_now() == before
        with pytest.raises(ValueError, match="x"), threads.one_blas_thread():
            raise ValueError("x")
        assert blas_now() == before
        assert not threads.blas_is_held()


# ---- scratch -------------------------------------------------------------------------------------
def test_scratch_is_reused_by_name_dtype_and_thread():
    one = scratch("test", (3, 4), np.float32)
    assert np.shares_memory(one, scratch("test", (2, 5), np.float32))
    assert not np.shares_memory(one, scratch("test", (3, 4), np.float64))
    assert not np.shares_memory(one, scratch("another", (3, 4), np.float32))
    assert scratch("test", (3, 4), np.float32) is scratch("test", (3, 4), np.float32)
    larger = scratch("test", (100,), np.float32)
    assert larger.shape == (100,)
    assert np.shares_memory(larger, scratch("test", (3, 4), np.float32))
    barrier = threading.Barrier(2)  # both at once: a pool's thread may else serve twice
    both = threads.run([lambda: (barrier.wait(9), scratch("test", (9,), np.float32))[1]] * 2)
    assert not np.shares_memory(*both)


@pytest.mark.parametrize("dtype", [np.dtype("float32"), np.dtype("float64")])
def test_ones_are_so_many_of_their_dtype_and_nobody_can_write_to_them(dtype):
    for n in (3, 0, 5000, 7):
        one = ones(n, dtype)
        assert one.dtype == dtype
        np.testing.assert_array_equal(one, np.ones(n))
    with pytest.raises(ValueError, match="read-only"):
        one[0] = 2


# ---- what an update remembers --------------------------------------------------------------------
def neighbours():
    """Three arrays that follow each other in memory, as they are after `flatten`."""
    tensors = [nplm.zeros(n) for n in (2, 3, 4)]
    flatten(tensors)
    return [t.array for t in tensors]


def test_known_neighbours_are_looked_for_again_when_an_array_is_another():
    p, g = neighbours(), neighbours()
    (before,) = updates.runs([0, 0, 0], p, g)
    (again,) = updates.runs([1, 1, 1], p, g)
    assert again.key == 1
    assert all(x is y for x, y in zip(before.arrays, again.arrays))
    kept = g[1]  # alive, so that nothing else says that it is gone
    g[1] = kept.copy()
    found = updates.runs([0, 0, 0], p, g)
    assert [run.arrays[0].size for run in found] == [2, 3, 4]
    assert np.shares_memory(found[1].arrays[1], g[1])


def test_what_is_known_about_arrays_ends_with_them():
    p, g = neighbours(), neighbours()
    updates.runs([0, 0, 0], p, g)
    place, memory = (2, id(p[0])), weakref.ref(g[0].base)
    assert place in updates._known
    del g[0]  # one of them is enough
    assert place not in updates._known
    g.clear()
    assert memory() is None
