"""The mutations that mutations.py applies: one for every house test, and those of parity tests."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One change of one file, and the test that must notice it."""

    name: str
    file: str
    old: str | None  # text to replace, once; None: `new` is appended (to a new file if need be)
    new: str
    test: str  # pytest's node id


def _house(name: str, file: str, old: str | None, new: str, test: str) -> Mutation:
    return Mutation(f"house: {name}", file, old, new, f"parity_tests/test_house.py::test_{test}")


LONG_FUNCTION = "\n\ndef far_too_long():\n" + "    x = 1\n" * 61
HOUSE = [
    _house("ops import train", "nplm/ops/linear.py", None, "\nfrom nplm.train import step\n",
           "every_import_goes_in_an_allowed_direction"),
    _house("a new room without a rule", "nplm/extra.py", None, '"""New."""\n',
           "every_import_goes_in_an_allowed_direction"),
    _house("nn imports torch", "nplm/nn/init.py", None, "\nimport torch\n",
           "torch_is_imported_only_in_its_own_rooms"),
    _house("graph imports the backend", "nplm/autograd/graph.py", None,
           "\nfrom nplm import backend\n", "graph_reads_alone_and_is_short"),
    _house("a kernel imports an op", "nplm/backend/numpy_kernels.py", None,
           '"""Kernels."""\nfrom nplm.ops import linear\n', "kernel_modules_import_only_op"),
    _house("a file of 400 more lines", "nplm/ops/norm.py", None, "\n# more" * 400,
           "no_file_and_no_function_is_longer_than_its_cap"),
    _house("a function of 61 lines", "nplm/ops/norm.py", None, LONG_FUNCTION,
           "no_file_and_no_function_is_longer_than_its_cap"),
    _house("an exception for a file that is gone", "parity_tests/house.py",
           "CAP_EXCEPTIONS: dict[str, str] = {}",
           'CAP_EXCEPTIONS: dict[str, str] = {"nplm/gone.py": "why"}',
           "every_cap_exception_is_still_needed"),
    _house("a file without a docstring", "nplm/ops/extra.py", None, "x = 1\n",
           "every_file_opens_with_a_short_docstring"),
    _house("300 lines more to read", "nplm/train/step.py", None, "\nx = 1" * 300,
           "the_reading_order_fits_an_evening"),
    _house("the README leaves out a file to read", "README.md", "`nplm/autograd/op.py`", "op",
           "the_readme_gives_the_same_reading_order"),
    _house("a file that the tree does not list", "docs/unlisted.md", None, "# Unlisted\n",
           "the_readme_tree_lists_every_file"),
    _house("an export named like its module", "nplm/ops/__init__.py", None,
           "\nfrom nplm.ops.dropout import dropout\n",
           "no_module_has_the_name_of_something_its_package_exports"),
    _house("import nplm loads tqdm", "nplm/__init__.py", None, "\nimport tqdm\n",
           "importing_nplm_loads_no_third_party_module_but_numpy"),
    _house("the loop needs safetensors", "nplm/train/loop.py", None, "\nimport safetensors\n",
           "training_in_memory_works_with_numpy_alone"),
]  # fmt: skip

PARITY: list[Mutation] = []

MUTATIONS = [*HOUSE, *PARITY]
