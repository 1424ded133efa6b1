"""Every truncation, every flipped bit and every exchange of files of a checkpoint is refused."""

import os
import shutil

import numpy as np
import pytest
from stored import FakeTensor, Holder, new_run, save_example

from nplm import files
from nplm.errors import CheckpointError
from nplm.train.checkpoint import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.cli


def tiny(base):
    """A checkpoint of about a thousand bytes."""
    return save_checkpoint(new_run(base), 1, model=Holder({"w": FakeTensor(np.ones(3))}))


def reason(path):
    """Why a checkpoint is refused, without its path."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    return str(caught.value).replace(str(path), "")


def flip(data, bit):
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def refuse_all(path, damages):
    """Load with each damage of each file; every refusal names the file. Returns their number."""
    count = 0
    for file in sorted(path.iterdir()):
        whole = file.read_bytes()
        for data in damages(whole):
            file.write_bytes(data)
            assert file.name in reason(path), (file.name, data)
            count += 1
        file.write_bytes(whole)
    load_checkpoint(path)
    return count


def truncations(whole):
    return (whole[:n] for n in range(len(whole)))


def flips(whole):
    return (flip(whole, bit) for bit in range(len(whole) * 8))


def test_every_truncation_of_every_file_is_refused(tmp_path):
    path = tiny(tmp_path)
    n_bytes = sum(file.stat().st_size for file in path.iterdir())
    assert refuse_all(path, truncations) == n_bytes


def test_every_flipped_bit_of_every_file_is_refused(tmp_path):
    path = tiny(tmp_path)
    n_bytes = sum(file.stat().st_size for file in path.iterdir())
    assert refuse_all(path, flips) == 8 * n_bytes


@pytest.mark.slow
@pytest.mark.parametrize("damages", [truncations, flips])
def test_every_damage_of_a_checkpoint_with_all_its_parts_is_refused(tmp_path, damages):
    assert refuse_all(save_example(new_run(tmp_path)), damages) > 2000


def test_what_is_longer_zeroed_or_shifted_is_refused(tmp_path):
    def damages(whole):
        half = len(whole) // 2
        yield whole + b"\n"
        yield bytes(len(whole))
        yield whole[:half] + bytes(len(whole) - half)
        yield whole[half:] + whole[:half]
        yield whole[:half] * 2 + whole[2 * half :]

    assert refuse_all(save_example(new_run(tmp_path)), damages) == 25


def test_files_of_two_checkpoints_cannot_be_exchanged(tmp_path):
    run = new_run(tmp_path)
    path = save_example(run, 500)
    other = save_checkpoint(run, 600, model=Holder({"w": FakeTensor(np.ones(3))}))
    for name in ("state.json", "model.safetensors", files.MANIFEST):
        kept = (path / name).read_bytes()
        shutil.copy(other / name, path / name)
        expected = "tokenizer.json" if name == files.MANIFEST else name
        assert reason(path).startswith((f"/{expected}: ", "/optimizer.safetensors: "))
        (path / name).write_bytes(kept)
    load_checkpoint(path)


def missing(path):
    (path / "state.json").unlink()
    return "/state.json: missing, but the manifest lists it"


def extra(path):
    (path / "weights.pkl").write_bytes(b"")
    return "/weights.pkl: not listed in the manifest"


def extra_with_a_name_to_mislead(path):
    (path / "\u202ekp.\n").write_bytes(b"")
    return ": file '\\u202ekp.\\n': not listed in the manifest"


def without_manifest(path):
    (path / files.MANIFEST).unlink()
    return "/MANIFEST.json: missing, so the folder is incomplete"


def empty(path):
    for file in path.iterdir():
        file.unlink()
    return "/MANIFEST.json: missing, so the folder is incomplete"


def a_file(path):
    shutil.rmtree(path)
    path.write_text("")
    return ": not a checkpoint folder: Not a directory"


def gone(path):
    shutil.rmtree(path)
    return ": not a checkpoint folder: No such file or directory"


def a_folder_inside(path):
    (path / "more").mkdir()
    return "/more: is not a regular file, so it is not read"


def a_link(path):
    (path / "state.json").rename(path.parent / "elsewhere")
    (path / "state.json").symlink_to(path.parent / "elsewhere")
    return "/state.json: is not a regular file, so it is not read"


def a_pipe(path):
    (path / "state.json").unlink()
    os.mkfifo(path / "state.json")
    return "/state.json: is not a regular file, so it is not read"


def a_device(path):
    (path / "state.json").unlink()
    try:
        os.mknod(path / "state.json", 0o020644, os.makedev(1, 5))  # /dev/zero
    except OSError:
        pytest.skip("only root may make a device")
    return "/state.json: is not a regular file, so it is not read"


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices are Unix's")
@pytest.mark.parametrize("damage", [
    missing, extra, extra_with_a_name_to_mislead, without_manifest, empty, a_file, gone,
    a_folder_inside, a_link, a_pipe, a_device,
])  # fmt: skip
def test_a_folder_that_is_not_as_it_was_written_is_refused_with_the_reason(tmp_path, damage):
    path = tiny(tmp_path)
    expected = damage(path)
    assert reason(path) == expected


@pytest.mark.skipif(os.name == "nt", reason="links and pipes are Unix's")
@pytest.mark.parametrize("replace", [a_link, a_pipe])
def test_a_file_that_becomes_a_link_or_a_pipe_after_the_check_is_not_read(
    tmp_path, monkeypatch, replace
):
    path = tiny(tmp_path)
    manifest = files.verify_directory(path)
    replace(path)
    monkeypatch.setattr(files.manifest, "_measured", lambda path: manifest)
    for read in (files.load_verified, files.verify_directory):
        with pytest.raises(CheckpointError, match=r"it is a link|is not a regular file"):
            read(path)


def test_a_checkpoint_behind_a_link_to_its_run_loads(tmp_path):
    path = tiny(tmp_path / "disk")
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    assert load_checkpoint(tmp_path / "runs" / path.relative_to(tmp_path / "disk")).step == 1
