"""nplm.save and nplm.load: named tensors come back exact, and everything else is refused."""

import numpy as np
import pytest

import nplm
from nplm import files, nn
from nplm.errors import CheckpointError, StorageError
from nplm.parity.tolerances import EXACT, assert_close

pytest.importorskip("safetensors", reason="files of tensors need it: pip install safetensors")

pytestmark = pytest.mark.cli


def tied():
    nplm.manual_seed(3)
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 5))
    model[2].weight = model[0].weight
    return model


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int16", "int32", "int64", "uint8",
                                   "bool"])  # fmt: skip
@pytest.mark.parametrize("shape", [(), (0, 3), (3, 2)])
def test_every_dtype_and_shape_comes_back(dtype, shape, device, tmp_path):
    values = (np.random.default_rng(0).random(shape) * 100).astype(dtype)
    nplm.save({"a.b": nplm.tensor(values, device=device)}, tmp_path / "x.safetensors")
    ((name, loaded),) = nplm.load(tmp_path / "x.safetensors").items()
    assert name == "a.b"
    assert loaded.device == "cpu"
    assert_close(loaded, values, EXACT)
    moved = nplm.load(str(tmp_path / "x.safetensors"), map_location=device, weights_only=True)
    assert moved["a.b"].device == device
    assert_close(moved["a.b"], values, EXACT)


def test_views_are_saved_as_what_they_show(device, tmp_path):
    x = nplm.arange(12, device=device).reshape(3, 4)
    shown = {"t": x.t(), "step": x[:, ::2], "wide": x[:1].expand(3, 4), "flip": x.flip(0)}
    nplm.save(shown, tmp_path / "x")
    for name, loaded in nplm.load(tmp_path / "x").items():
        assert loaded.tolist() == shown[name].tolist(), name


def test_a_model_goes_on_where_it_was(device, tmp_path):
    model, ids = tied().to(device), nplm.tensor([[1, 2, 4]], device=device)
    nplm.save(model.state_dict(), tmp_path / "model.safetensors")
    nplm.manual_seed(4)
    fresh = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 5)).to(device)
    fresh[2].weight = fresh[0].weight
    assert fresh.load_state_dict(nplm.load(tmp_path / "model.safetensors")) == ([], [])
    assert fresh[2].weight is fresh[0].weight
    assert_close(fresh(ids), model(ids), EXACT)


def test_a_tied_weight_is_stored_under_each_name(tmp_path):
    nplm.save(tied().state_dict(), tmp_path / "model")
    loaded = nplm.load(tmp_path / "model")
    assert_close(loaded["0.weight"], loaded["2.weight"], EXACT)
    loaded["0.weight"].zero_()
    assert loaded["2.weight"].any()


def test_parameters_are_saved_and_come_back_without_a_graph(tmp_path):
    model = tied()
    nplm.save(dict(model.named_parameters()), tmp_path / "model")
    loaded = nplm.load(tmp_path / "model")
    assert sorted(loaded) == ["0.weight", "1.bias", "1.weight", "2.bias"]
    assert not any(t.requires_grad for t in loaded.values())
    assert loaded["1.weight"].requires_grad_().is_leaf


def test_torch_s_own_reader_agrees(tmp_path):
    torch = pytest.importorskip("torch", reason="the judge is PyTorch: pip install torch")
    from safetensors.torch import load_file, save_file

    state = tied().state_dict()
    nplm.save(state, tmp_path / "ours")
    theirs = load_file(tmp_path / "ours")
    assert theirs.keys() == state.keys()
    for name, value in theirs.items():
        assert_close(state[name], value, EXACT)
    save_file({"x": torch.arange(3.0, dtype=torch.bfloat16)}, tmp_path / "theirs")
    assert nplm.load(tmp_path / "theirs")["x"].tolist() == [0, 1, 2]


def test_nothing_to_save_is_saved(tmp_path):
    nplm.save({}, tmp_path / "x")
    assert nplm.load(tmp_path / "x") == {}


def test_a_file_is_replaced_whole_and_kept_when_the_new_one_is_refused(tmp_path):
    nplm.save({"a": nplm.ones(3)}, tmp_path / "x")
    nplm.save({"b": nplm.zeros(2)}, tmp_path / "x")
    with pytest.raises(TypeError):
        nplm.save({"c": 1.0}, tmp_path / "x")
    assert list(nplm.load(tmp_path / "x")) == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


# ---- refusals ------------------------------------------------------------------------------------
def optimizer_state():
    return nplm.optim.SGD(tied().parameters(), lr=0.1).state_dict()


NOT_NAMED_TENSORS = {
    "a tensor": (lambda: nplm.ones(2), "got Tensor"),
    "a list": (lambda: [nplm.ones(2)], "got list"),
    "a model": (tied, "got Sequential"),
    "None": (lambda: None, "got NoneType"),
    "a number inside": (lambda: {"a": nplm.ones(2), "step": 3}, "got int under 'step'"),
    "an array inside": (lambda: {"a": np.ones(2)}, "got ndarray under 'a'"),
    "a number as a name": (lambda: {0: nplm.ones(2)}, "got Tensor under 0"),
    "an optimizer's state": (optimizer_state, "under 'state'"),
    "a run": (lambda: {"model": tied().state_dict(), "step": 1}, "got OrderedDict under 'model'"),
}


@pytest.mark.parametrize("kind", NOT_NAMED_TENSORS)
def test_anything_else_is_refused_with_what_to_use(kind, tmp_path):
    make, said = NOT_NAMED_TENSORS[kind]
    with pytest.raises(TypeError, match=rf"save: expected a mapping of names.*{said}") as caught:
        nplm.save(make(), tmp_path / "x")
    assert "nplm.save(model.state_dict(), path)" in str(caught.value)
    assert "nplm.train.checkpoint" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_arguments_in_the_wrong_order_and_open_files_are_refused(tmp_path):
    with pytest.raises(TypeError, match="save: expected the path of a file, got dict"):
        nplm.save(tmp_path / "x", {"a": nplm.ones(2)})
    with open(tmp_path / "y", "wb") as file, pytest.raises(TypeError, match="path of a file"):
        nplm.save({"a": nplm.ones(2)}, file)
    with pytest.raises(TypeError, match="load: expected the path of a file, got bytes"):
        nplm.load(b"")


def test_the_name_that_safetensors_needs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rename it"):
        nplm.save({"__metadata__": nplm.ones(2)}, tmp_path / "x")


def test_a_pickle_is_never_read(tmp_path):
    torch = pytest.importorskip("torch", reason="the file is PyTorch's: pip install torch")
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt: damaged or not a safetensors file"):
        nplm.load(tmp_path / "x.pt")
    with pytest.raises(NotImplementedError, match="weights_only=False"):
        nplm.load(tmp_path / "x.pt", weights_only=False)


def test_a_dtype_that_nplm_lacks_is_named(tmp_path):
    files.save_tensors(tmp_path / "x", {"half": np.ones(2, np.float16)})
    with pytest.raises(CheckpointError, match=r"x: tensor 'half': dtype float16 is not supported"):
        nplm.load(tmp_path / "x")


def test_a_place_that_cannot_be_written_or_read_is_named(tmp_path):
    with pytest.raises(StorageError, match="absent"):
        nplm.save({"a": nplm.ones(2)}, tmp_path / "absent" / "x")
    with pytest.raises(CheckpointError, match="absent"):
        nplm.load(tmp_path / "absent")
