"""What a mutation is: one change of one file, and the test that must notice it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One change of one file, and the test that must notice it."""

    name: str
    file: str
    old: str | None  # text to replace, once; None: `new` is appended (to a new file if need be)
    new: str
    test: str  # pytest's node id


def house(name: str, file: str, old: str | None, new: str, test: str) -> Mutation:
    return Mutation(f"house: {name}", file, old, new, f"parity_tests/test_house.py::test_{test}")


def parity(name: str, file: str, old: str, new: str, test: str) -> Mutation:
    return Mutation(name, file, old, new, f"parity_tests/{test}")
