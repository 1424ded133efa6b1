"""One pass over a loader's data, and how the same pass is begun again in its middle.

An order is a function of random streams. So a place in it is: the streams as the pass began, and
how many batches' indices were drawn since; the indices themselves are never stored.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from nplm import random
from nplm.errors import ConfigError
from nplm.random import Generator

State = dict[str, Any]
_WHERE = "DataLoader.load_state_dict"
_END = object()


class Streams:
    """The generators that `owners` were given, each once, and the default stream beside them."""

    def __init__(self, *owners: Any) -> None:
        found = [getattr(owner, "generator", None) for owner in owners]
        self.own = list(dict.fromkeys(g for g in found if isinstance(g, Generator)))
        if random.default_generator in self.own:
            self.own.remove(random.default_generator)

    def own_states(self) -> list[State]:
        """Where the generators are, without the default stream."""
        return [generator.get_state() for generator in self.own]

    def set_own(self, states: Iterable[State]) -> None:
        """Put the generators where `own_states` found them."""
        for generator, state in zip(self.own, states):
            generator.set_state(state)

    def snapshot(self) -> State:
        """Where all streams are."""
        return {"default": random.default_generator.get_state(), "own": self.own_states()}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        """Put all streams where `snapshot` found them."""
        random.default_generator.set_state(snapshot["default"])
        self.set_own(snapshot["own"])


class Pass(Iterator[Any]):
    """One pass: the batches that `read` makes from the indices of `order`.

    An order may draw when it is asked for an iterator (a sampler that shuffles a list and returns
    the list's) or at the first batch (a generator function), and anyone may draw in between: so the
    streams of both moments are kept.
    """

    read: Callable[[Any], Any]

    def __init__(self, order: Iterable[Any], streams: Streams) -> None:
        self._order = order
        self._streams = streams
        self._at_iter = streams.snapshot()
        self._at_first_batch: State | None = None
        self.indices = iter(order)
        self.drawn = 0  # a batch whose sample could not be read counts: nobody reads it again
        self.ended = False

    def __len__(self) -> int:
        """The batches of the whole pass, those already read too, as torch's iterators."""
        return len(self._order)  # type: ignore[arg-type]  # TypeError if the order has none

    @property
    def batches_left(self) -> int | None:
        """The batches still to come, if that is known."""
        n = length_of(self._order)
        return None if n is None else max(n - self.drawn, 0)

    def __next__(self) -> Any:
        if self.ended:
            raise StopIteration
        if self._at_first_batch is None:
            self._at_first_batch = self._streams.snapshot()
        try:
            index = next(self.indices)
            self.drawn += 1
            return self.read(index)
        except StopIteration:
            self.ended = True
            raise

    def state_dict(self) -> State:
        """The streams as the pass began, and the batches whose indices were drawn."""
        return {
            "at_iter": self._at_iter,
            "at_first_batch": self._at_first_batch,
            "batches": self.drawn,
        }

    @classmethod
    def replayed(cls, order: Iterable[Any], streams: Streams, state: Mapping[str, Any]) -> "Pass":
        """The pass that `state` describes: its indices are drawn again, no sample is read.

        All streams are put back to where they are now. Raises ConfigError if it has fewer batches.
        """
        before = streams.snapshot()
        try:
            streams.restore(state["at_iter"])
            again = cls(order, streams)
            if state["at_first_batch"] is not None:
                streams.restore(state["at_first_batch"])
                again._at_first_batch = state["at_first_batch"]
            for _ in range(state["batches"]):
                again.drawn += 1
                if next(again.indices, _END) is _END:
                    raise ConfigError(
                        f"{_WHERE}: expected a place within the epoch, got {state['batches']} "
                        f"batches where the order ends before batch {again.drawn}"
                    )
        finally:
            streams.restore(before)
        return again


def length_of(sized: Any) -> int | None:
    """`len(sized)`, or None if it has none: some classes have the method and no answer."""
    try:
        return len(sized)
    except TypeError:
        return None


def check_state(state: Mapping[str, Any], settings: Mapping[str, Any], n_generators: int) -> None:
    """Raise ConfigError unless `state` is a loader's, with these settings and generators."""
    _require_keys(state, {"settings", "generators", "epoch"}, "what state_dict() made")
    _require_keys(state["settings"], set(settings), "settings")
    _require_list(state["generators"], "generators")
    theirs = {**state["settings"], "generators": len(state["generators"])}
    for name, ours in {**settings, "generators": n_generators}.items():
        if type(theirs[name]) is not type(ours) or theirs[name] != ours:
            raise ConfigError(
                f"{_WHERE}: the state is of a loader with {name}={theirs[name]!r}, this one has "
                f"{ours!r}; make the loader as it was when the state was taken"
            )
    _require_streams(state["generators"])
    if state["epoch"] is not None:
        _check_epoch(state["epoch"], n_generators)


def _check_epoch(epoch: Any, n_generators: int) -> None:
    _require_keys(epoch, {"at_iter", "at_first_batch", "batches"}, "an epoch")
    batches, first = epoch["batches"], epoch["at_first_batch"]
    if type(batches) is not int or batches < 0:
        raise ConfigError(f"{_WHERE}: expected epoch.batches as a whole number, got {batches!r}")
    if batches and first is None:
        raise ConfigError(f"{_WHERE}: expected epoch.at_first_batch, got None after {batches}")
    for name in ("at_iter", "at_first_batch") if first is not None else ("at_iter",):
        _require_keys(epoch[name], {"default", "own"}, f"epoch.{name}")
        own = epoch[name]["own"]
        _require_list(own, f"epoch.{name}.own")
        if len(own) != n_generators:
            raise ConfigError(
                f"{_WHERE}: expected {n_generators} states in epoch.{name}.own, got {len(own)}"
            )
        _require_streams([epoch[name]["default"], *own])


def _require_keys(value: Any, keys: set[str], what: str) -> None:
    if not isinstance(value, Mapping) or value.keys() != keys:
        got = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise ConfigError(f"{_WHERE}: expected {what}, {sorted(keys)}, got {got}")


def _require_list(value: Any, what: str) -> None:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{_WHERE}: expected {what} as a list, got {type(value).__name__}")


def _require_streams(states: Iterable[Any]) -> None:
    for state in states:
        Generator().set_state(state)  # ConfigError unless it is a generator's
