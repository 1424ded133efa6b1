"""Three listings as a book prints them (docs/listings), on torch and, imports apart, on nplm."""

import re

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="the judge of these tests is PyTorch: pip install torch"
)
pytest.importorskip(
    "early_stopping_pytorch", reason="the judge: pip install early-stopping-pytorch"
)

from house import ROOT  # noqa: E402

import nplm  # noqa: E402
from nplm.parity.tolerances import EXACT, LISTING_64, assert_close, to_numpy  # noqa: E402

pytestmark = pytest.mark.run

LISTINGS = ROOT / "docs" / "listings"
IMPORTS = {  # import lines of torch and its packages -> of nplm; "...": whatever is imported
    "from torch import ...": "from nplm import ...",
    "from torch.optim.lr_scheduler import StepLR": "from nplm.optim.lr_scheduler import StepLR",
    "from torch.utils.data import DataLoader, TensorDataset": (
        "from nplm.utils.data import DataLoader, TensorDataset"
    ),
    "from early_stopping_pytorch import EarlyStopping": "from nplm.train import EarlyStopping",
}


def for_nplm(text):
    """The same listing with the import lines of the table."""
    for old, new in IMPORTS.items():
        start, whatever = old.removesuffix("..."), "(.*)" if old.endswith("...") else "()"
        new = new.removesuffix("...")
        text = re.sub(rf"^{re.escape(start)}{whatever}$", rf"{new}\1", text, flags=re.M)
    return text


class Recorded:
    """A listing that ran: what it left behind, and every update that it made."""

    def __init__(self, library, text, folder, monkeypatch):
        self.updates = []  # of each: gradients, parameters after it, learning rate
        folder.mkdir()
        with monkeypatch.context() as patch:
            patch.chdir(folder)
            for kind in (library.optim.SGD, library.optim.Adam):
                patch.setattr(kind, "step", self.watched(kind.step))
            self.names = {}
            exec(compile(text, folder.name, "exec"), self.names)

    def watched(self, step):
        def step_and_record(optimizer, *args):
            (group,) = optimizer.param_groups
            gradients = [to_numpy(p.grad).copy() for p in group["params"]]
            lr = group["lr"]
            result = step(optimizer, *args)
            weights = [to_numpy(p).copy() for p in group["params"]]
            self.updates.append((gradients, weights, lr))
            return result

        return step_and_record


@pytest.fixture
def run_both(tmp_path, monkeypatch):
    """Run a listing with both import tables and hold all updates and losses against each other."""
    before = torch.get_default_dtype()

    def run(name):
        text = (LISTINGS / f"{name}.py").read_text()
        theirs = Recorded(torch, text, tmp_path / "torch", monkeypatch)
        ours = Recorded(nplm, for_nplm(text), tmp_path / "nplm", monkeypatch)
        assert isinstance(ours.names["loss"], nplm.Tensor)
        assert isinstance(theirs.names["loss"], torch.Tensor)
        assert len(ours.updates) == len(theirs.updates) >= 60
        for update, (our, their) in enumerate(zip(ours.updates, theirs.updates)):
            assert our[2] == their[2], f"update {update}: lr"
            for kind, a, b in zip(("gradient", "parameter"), our, their):
                assert len(a) == len(b) == 3
                for i, (x, y) in enumerate(zip(a, b)):
                    assert_close(x, y, LISTING_64, f"update {update}: {kind} {i}")
        assert_close(np.array(ours.names["losses"]), np.array(theirs.names["losses"]), LISTING_64)
        assert ours.names["losses"][-1] < 0.7 * ours.names["losses"][0]
        return ours, theirs

    yield run
    torch.set_default_dtype(before)


def test_the_page_shows_the_table_of_imports():
    page = (ROOT / "docs" / "listings.md").read_text()
    assert dict(re.findall(r"^\| `(.*import.*)` \| `(.*import.*)` \|$", page, re.M)) == IMPORTS


def test_a_listing_is_the_same_text_for_both_but_for_its_imports():
    listings = {
        path.stem: path.read_text().splitlines()
        for path in LISTINGS.glob("*.py")
        if path.stem != "recorded"
    }
    assert sorted(listings) == ["accumulation", "early_stopping", "step_lr"]
    seen = set()
    for name, theirs in listings.items():
        ours = for_nplm("\n".join(theirs)).split("\n")
        assert len(ours) == len(theirs)
        for their, our in zip(theirs, ours):
            if "torch" in their:  # in no listing is it anything but an import
                whole = their if their in IMPORTS else re.sub("import .*", "import ...", their)
                assert whole in IMPORTS, f"{name}: the table lacks {their}"
                assert our.split(" import ")[0] == IMPORTS[whole].split(" import ")[0]
                assert our.split(" import ")[1] == their.split(" import ")[1]
                seen.add(whole)
            else:
                assert our == their, name
    assert seen == set(IMPORTS)  # the table has no line that no listing needs


def test_accumulation_by_hand(run_both):
    ours, _ = run_both("accumulation")
    loader, K = ours.names["loader"], ours.names["accumulation_steps"]
    assert K == 4
    assert len(ours.updates) == 3 * (len(loader) // K)
    assert len(loader) % K  # what is left over goes into the next epoch's first update


def test_step_lr_once_an_epoch(run_both):
    ours, theirs = run_both("step_lr")
    lrs = [lr for _, _, lr in ours.updates]
    per_epoch = len(ours.names["loader"])
    assert per_epoch > 1
    drops = [i for i in range(1, len(lrs)) if lrs[i] != lrs[i - 1]]
    assert drops == [30 * per_epoch, 60 * per_epoch]
    assert ours.names["scheduler"].get_last_lr() == theirs.names["scheduler"].get_last_lr()


def test_early_stopping_at_the_same_epoch_with_the_same_weights(run_both, tmp_path):
    ours, theirs = run_both("early_stopping")
    stopper, judge = ours.names["early_stopping"], theirs.names["early_stopping"]
    assert stopper.early_stop
    assert judge.early_stop
    assert stopper.counter == judge.counter == 10
    assert ours.names["epoch"] == theirs.names["epoch"] < 50
    valid = [np.array(run.names["valid_losses"]) for run in (ours, theirs)]
    assert_close(valid[0], valid[1], LISTING_64, "validation losses")
    assert stopper.best_call == int(np.argmin(valid[1])) + 1 < len(valid[1])
    best = float(judge.best_val_loss)
    assert_close(np.array(stopper.best_val_loss), np.array(best), LISTING_64)
    assert stopper.best_val_loss == stopper.val_loss_min

    saved = nplm.load(tmp_path / "nplm" / "checkpoint.pt")
    their_saved = torch.load(tmp_path / "torch" / "checkpoint.pt")
    model = ours.names["model"].state_dict()
    assert saved.keys() == their_saved.keys() == model.keys()
    for name, value in saved.items():
        assert_close(value, their_saved[name], LISTING_64, f"saved {name}")
        assert_close(model[name], value, EXACT, f"restored {name}")
    last = ours.updates[-1][1][0]
    assert np.abs(last - to_numpy(saved["0.weight"])).max() > 1e-3  # it had gone on from the best
