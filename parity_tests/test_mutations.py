"""The mutations of mutation_cases.py can be applied; the slow test shows that each is noticed."""

import subprocess
import sys

import pytest
from house import ROOT
from mutation_cases import HOUSE, MUTATIONS

pytestmark = pytest.mark.fault


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_mutation_changes_text_that_is_there_and_names_a_test(mutation):
    if mutation.old is not None:
        text = (ROOT / mutation.file).read_text()
        assert mutation.old in text
        assert text.replace(mutation.old, mutation.new, 1) != text
    file, name = mutation.test.split("::")
    assert f"def {name.split('[')[0]}(" in (ROOT / file).read_text()


def test_every_house_test_has_a_mutation():
    source = (ROOT / "parity_tests" / "test_house.py").read_text()
    names = {line[4:].split("(")[0] for line in source.splitlines() if line.startswith("def test_")}
    assert names == {mutation.test.split("::")[1] for mutation in HOUSE}


@pytest.mark.slow
def test_every_mutation_turns_its_test_red():
    pytest.importorskip("torch", reason="most mutations are noticed by comparing with PyTorch")
    script = ROOT / "parity_tests" / "mutations.py"
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
