"""Options as words NAME=VALUE: what is read, and everything that is refused, in one sentence."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nplm.errors import ConfigError
from nplm.train import options, parts
from nplm.train.options import LONGEST, build, read_options, required, takes

pytestmark = pytest.mark.cli


def sample(
    params: Any, number: float, whole: int = 3, flag: bool = False, maybe: bool | None = None,
    word: str = "a", mode: Literal["up", "down"] = "up", pair: tuple[float, float] = (0.5, 0.9),
    steps: Iterable[int] = (), rates: float | list[float] = 1.0, least: int | None = None,
    scale_fn: Callable[[float], float] | None = None, anything: Any = None, last_epoch: int = -1,
) -> None:  # fmt: skip
    """A function with an argument of every type that an optimizer or a scheduler declares."""


def read(*words: str, **elsewhere: str) -> dict[str, Any]:
    return read_options(words, sample, "here", elsewhere)


def spelled(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


NUMBERS = st.floats(-1e15, 1e15) | st.integers(-(10**15), 10**15)
WHOLE = st.integers(-(10**15), 10**15)
VALUES = {
    "number": NUMBERS, "whole": WHOLE, "flag": st.booleans(), "maybe": st.none() | st.booleans(),
    "mode": st.sampled_from(["up", "down"]), "pair": st.tuples(NUMBERS, NUMBERS),
    "word": st.from_regex(r"[a-z][a-z0-9_-]{0,9}", fullmatch=True).filter(
        lambda w: w not in ("true", "false", "none", "nan", "inf", "infinity")),
    "steps": st.lists(WHOLE), "rates": NUMBERS | st.lists(NUMBERS), "least": st.none() | WHOLE,
    "anything": NUMBERS | st.booleans() | st.none() | st.lists(NUMBERS),
}  # fmt: skip


# ---- what is read --------------------------------------------------------------------------------
@given(st.fixed_dictionaries({}, optional=VALUES))
def test_what_is_written_comes_back_with_its_type(values):
    found = read(*[f"{name}={spelled(value)}" for name, value in values.items()])
    assert found == values
    assert list(found) == list(values)
    assert {k: type(v) for k, v in found.items()} == {k: type(v) for k, v in values.items()}


@pytest.mark.parametrize(("word", "value"), [
    ("flag=TRUE", True), ("flag=False", False), ("maybe=None", None), ("least=NONE", None),
    ("number=1e-3", 0.001), ("number=1_000", 1000), ("whole=0x10", 16), ("whole= 7", 7),
    ("pair=0.5,0.9", (0.5, 0.9)), ("pair=[0.5,1]", (0.5, 1)), ("pair=(1,2)", (1, 2)),
    ("steps=4,9", [4, 9]), ("steps=[4,]", [4]), ("steps=()", []), ("rates=(0.1,0.2)", [0.1, 0.2]),
    ("word='a b'", "a b"), ('word="x=y"', "x=y"), ("word=1-sqrt", "1-sqrt"), ("word=äöü", "äöü"),
    ("mode='down'", "down"), ("number=-0.0", 0.0), ("number=1e15", 1e15),
])  # fmt: skip
def test_other_ways_to_write_a_value(word, value):
    [found] = read(word).values()
    assert found == value
    assert type(found) is type(value)


def test_no_words_are_no_options():
    assert read() == {}


def test_what_a_function_or_class_takes_is_what_its_signature_says():
    assert takes(sample) == [
        "number", "whole", "flag", "maybe", "word", "mode", "pair", "steps", "rates", "least",
        "scale_fn", "anything",
    ]  # fmt: skip
    assert required(sample) == ["number"]
    assert takes(parts.SCHEDULERS["StepLR"]) == ["step_size", "gamma"]
    assert required(parts.SCHEDULERS["StepLR"]) == ["step_size"]
    assert takes(parts.OPTIMIZERS["RMSprop"])[:3] == ["lr", "alpha", "eps"]
    assert takes(parts.RECIPES["constant"]) == required(parts.RECIPES["constant"]) == []


@pytest.mark.parametrize("kind", [
    *parts.OPTIMIZERS.values(), *parts.SCHEDULERS.values(), *parts.RECIPES.values(),
], ids=lambda kind: kind.__name__)  # fmt: skip
def test_every_argument_of_every_part_declares_a_type_that_words_are_held_to(kind):
    for name in takes(kind):
        if name in ("schedulers", "optimizer", *options.FUNCTIONS):
            continue
        with pytest.raises(ConfigError, match=f"here: a value of the wrong type: {name}: expected"):
            read_options([f"{name}=['a',2,3,4]"], kind, "here")


# ---- what is refused -----------------------------------------------------------------------------
REFUSED = {
    "no value": ("number", "expected NAME=VALUE, such as momentum=0.9, got 'number'"),
    "nothing": ("", "expected NAME=VALUE, such as momentum=0.9, got ''"),
    "a space": (" ", "expected NAME=VALUE"),
    "no name": ("=3", "expected NAME=VALUE"),
    "a name that is none": ("a b=3", "expected NAME=VALUE"),
    "a name with a space": (" number=3", "expected NAME=VALUE"),
    "a flag": ("--number=3", "expected NAME=VALUE"),
    "an unknown name": ("numbr=3", "unknown option 'numbr': expected one of .*; did you mean 'nu"),
    "a name like nothing": ("ßß=3", "unknown option 'ßß': expected one of number, .* anything$"),
    "the place of the parameters": ("params=3", "unknown option 'params'"),
    "the epoch of a schedule": ("last_epoch=3", "unknown option 'last_epoch'"),
    "a private name": ("__class__=3", "unknown option '__class__'"),
    "a function": ("scale_fn=abs", "scale_fn is a function, which no word can be; leave it out"),
    "an empty value": ("number=", "number: expected a number, a list or a word, got ''"),
    "infinity": ("number=inf", "number: expected a number of at most 10.15, got 'inf'"),
    "minus infinity": ("number=-Infinity", "number: expected a number of at most 10.15"),
    "NaN": ("number=nan", "number: expected a number of at most 10.15, got 'nan'"),
    "beyond floats": ("number=1e999", "number: expected a number of at most 10.15"),
    "a large number": ("whole=1000000000000001", "whole: expected a number of at most 10.15"),
    "a large number in a list": ("steps=[1,-1e16]", "steps: expected a number of at most 10.15"),
    "5,000 digits": ("whole=" + "9" * 5000, "whole: expected a whole number, got '9999"),
    "a call": ("number=exit()", "number: expected a number, a list or a word, got 'exit()'"),
    "a product": ("whole=2*3", "whole: expected a number, a list or a word"),
    "a power": ("whole=9**9**9", "whole: expected a number, a list or a word"),
    "an attribute": ("word=().__class__", "word: expected a number, a list or a word"),
    "a formatted text": ("word=f'{1}'", "word: expected a number, a list or a word"),
    "a mapping": ("anything={'a': 1}", "anything: expected a number, a list or a word"),
    "a set": ("anything={1}", "anything: expected a number, a list or a word"),
    "bytes": ("anything=b'a'", "anything: expected a number, a list or a word"),
    "a complex number": ("number=1j", "number: expected a number, a list or a word"),
    "dots": ("anything=...", "anything: expected a number, a list or a word"),
    "a list in a list": ("anything=[[1]]", "anything: expected a number, a list or a word"),
    "a flag in a list": ("anything=[True]", "anything: expected a number, a list or a word"),
    "a null byte": ("word=a\0b", "word: expected a number, a list or a word"),
    "half a character": ("word=\ud800", "word: expected a number, a list or a word"),
    "an open bracket": ("steps=[1", "steps: expected a number, a list or a word"),
    "an open quote": ("word='a", "word: expected a number, a list or a word"),
    "a word for a number": ("number=fast", "number: expected a number, got 'fast'"),
    "a flag for a number": ("number=true", "number: expected a number, got 'true'"),
    "nothing for a number": ("number=none", "number: expected a number, got 'none'"),
    "a fraction for a count": ("whole=4.0", "whole: expected a whole number, got '4.0'"),
    "a flag for a count": ("whole=true", "whole: expected a whole number, got 'true'"),
    "yes": ("flag=yes", "flag: expected true or false, got 'yes'"),
    "no": ("flag=no", "flag: expected true or false, got 'no'"),
    "a number for a flag": ("flag=1", "flag: expected true or false, got '1'"),
    "a misspelled flag": ("maybe=flase", "maybe: expected true or false or none, got 'flase'"),
    "a number for a word": ("word=3", "word: expected a word, got '3'"),
    "another choice": ("mode=sideways", "mode: expected up or down, got 'sideways'"),
    "a list for a choice": ("mode=[1]", r"mode: expected up or down, got '\[1\]'"),
    "one for a pair": ("pair=0.5", "pair: expected 2 values, got '0.5'"),
    "three for a pair": ("pair=1,2,3", "pair: expected 2 values, got '1,2,3'"),
    "a word in a pair": ("pair=1,'a'", "pair: expected a number, got "),
    "one for a list": ("steps=4", r"steps: expected a list such as \[4,8\], got '4'"),
    "a fraction in a list": ("steps=[4,1.5]", "steps: expected a whole number, got "),
    "a word for a number or a list": (
        "rates=x", r"rates: expected a number or a list such as \[4,8\], got 'x'"),
    "a fraction for a count or none": ("least=1.5", "least: expected a whole number or none"),
    "too long": ("word=" + "x" * LONGEST, "here: expected at most 10,000 characters, got 10,005"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_with_what_is_expected(case):
    word, says = REFUSED[case]
    with pytest.raises(ConfigError, match=says.replace("()", r"\(\)")) as refused:
        read(word)
    assert str(refused.value).startswith("here: ")
    assert len(str(refused.value)) < 300


def test_an_option_twice_and_one_that_has_a_setting_of_its_own_are_refused():
    with pytest.raises(ConfigError, match="here: whole is given twice"):
        read("whole=3", "number=1", "whole=3")
    with pytest.raises(ConfigError, match="here: number is --lr; give it there"):
        read("number=3", number="--lr")
    with pytest.raises(ConfigError, match=r"expected one of whole, .*; did you mean") as refused:
        read("numbers=3", number="--lr")
    assert "of number" not in str(refused.value)


def test_where_nothing_is_taken_every_name_is_unknown():
    with pytest.raises(ConfigError, match="here: unknown option 'a': expected one of none"):
        read_options(["a=1"], parts.RECIPES["constant"], "here")


@given(st.lists(st.text() | st.builds("{}={}".format, st.sampled_from(takes(sample)), st.text()),
                max_size=3))  # fmt: skip
@example(["word=\ud800"])
@example(["number=1if 1else 2"])
@example(["word='\\d'"])
@example(["number=" + "-" * 9000 + "1"])
@example(["number=" + "1+" * 4500 + "1"])
@example(["steps=" + "[" * 9000])
@example(["steps=" + "(" * 9000 + ")" * 900])
@example(["word=" + "a." * 4500 + "a"])
def test_any_words_are_options_or_one_short_sentence(words):
    try:
        found = read(*words)
    except ConfigError as refused:
        said, found = str(refused), None
    if found is None:
        assert said.startswith("here: ")
        assert len(said) < 1000
        said.encode()
    else:
        assert found.keys() <= set(takes(sample))
        for value in found.values():
            for item in value if isinstance(value, list | tuple) else (value,):
                assert item is None or isinstance(item, bool | int | float | str)
                assert not isinstance(item, float) or math.isfinite(item)


def test_nothing_is_evaluated(tmp_path):
    canary = tmp_path / "canary"
    call = f"__import__('os').mkdir({str(canary)!r})"
    for code in (call, f"[{call}]", f"[{call} for _ in [1]]", f"(x := {call})", f'f"{{{call}}}"'):
        for name in takes(sample):
            with pytest.raises(ConfigError):
                read(f"{name}={code}")
        assert not canary.exists()
        eval(compile(code, "x", "eval"), {})
        canary.rmdir()  # it would have sung


def test_a_great_deal_of_text_or_of_words_is_refused_at_once():
    begin = time.perf_counter()
    for word in (
        "word=" + "x" * 10**7, "x" * 10**7 + "=1", "steps=" + "[" * 10**7, "whole=" + "9" * 10**7,
        "number=" + "-" * 10**7 + "1", "x" * 9000 + "=1",
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=r"here: (expected|unknown)"):
            read(word)
    with pytest.raises(ConfigError, match="whole is given twice"):
        read(*["whole=1"] * 10**6)
    assert read("steps=" + "1," * 4000)["steps"] == [1] * 4000
    assert time.perf_counter() - begin < 5


# ---- build ---------------------------------------------------------------------------------------
ERRORS = [ZeroDivisionError, OverflowError, AssertionError, AttributeError, IndexError, KeyError,
          RuntimeError, NotImplementedError, TypeError, ValueError]  # fmt: skip


@pytest.mark.parametrize("kind", ERRORS)
def test_what_a_part_refuses_is_our_error_that_says_where(kind):
    def fail():
        raise kind("no good")

    with pytest.raises(ConfigError, match=r"^there: .*no good$") as refused:
        build(fail, "there")
    assert isinstance(refused.value.__cause__, kind)
    assert ("wrong type" in str(refused.value)) == (kind is TypeError)


def test_our_own_error_an_interruption_and_a_result_pass_through_a_build():
    ours = ConfigError("ours")
    for error in (ours, KeyboardInterrupt(), MemoryError(), OSError()):

        def fail(error=error):
            raise error

        with pytest.raises(type(error)) as passed:
            build(fail, "there")
        assert passed.value is error
    assert build(lambda: 3, "there") == 3

    def silent():
        raise ValueError

    with pytest.raises(ConfigError, match=r"^there: ValueError$"):
        build(silent, "there")
