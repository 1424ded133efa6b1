"""One pass over a loader's data, and how the same pass is begun again in its middle.

An order is a function of random streams. So a place in it is: the streams as the pass began, and
how many batches were handed out since; the indices themselves are never stored.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from nplm import random
from nplm.errors import ConfigError
from nplm.random import Generator

State = dict[str, Any]


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
        self._streams = streams
        self._at_iter = streams.snapshot()
        self._at_first_batch: State | None = None
        self.indices = iter(order)
        self.handed_out = 0
        self.ended = False

    def __next__(self) -> Any:
        if self.ended:
            raise StopIteration
        if self._at_first_batch is None:
            self._at_first_batch = self._streams.snapshot()
        try:
            batch = self.read(next(self.indices))
        except StopIteration:
            self.ended = True
            raise
        self.handed_out += 1
        return batch

    def state_dict(self) -> State:
        """The streams as the pass began, and the batches handed out."""
        return {
            "at_iter": self._at_iter,
            "at_first_batch": self._at_first_batch,
            "batches": self.handed_out,
        }

    @classmethod
    def replayed(cls, order: Iterable[Any], streams: Streams, state: Mapping[str, Any]) -> "Pass":
        """The pass that `state` describes: its indices are drawn again, no sample is read.

        All streams are put back to where they are now.
        """
        before = streams.snapshot()
        try:
            streams.restore(state["at_iter"])
            again = cls(order, streams)
            if state["at_first_batch"] is not None:
                streams.restore(state["at_first_batch"])
                again._at_first_batch = state["at_first_batch"]
            for _ in range(state["batches"]):
                next(again.indices, None)
            again.handed_out = state["batches"]
        finally:
            streams.restore(before)
        return again


def check_state(state: Mapping[str, Any], settings: Mapping[str, Any], n_generators: int) -> None:
    """Raise ConfigError unless `state` is a loader's, with these settings and generators."""
    where = "DataLoader.load_state_dict"
    keys = {"settings", "generators", "epoch"}
    if not isinstance(state, Mapping) or state.keys() != keys:
        got = sorted(state) if isinstance(state, Mapping) else type(state).__name__
        raise ConfigError(f"{where}: expected what state_dict() made, {sorted(keys)}, got {got}")
    theirs = {**state["settings"], "generators": len(state["generators"])}
    for name, ours in {**settings, "generators": n_generators}.items():
        if theirs.get(name) != ours:
            raise ConfigError(
                f"{where}: the state is of a loader with {name}={theirs.get(name)!r}, this one has "
                f"{ours!r}; make the loader as it was when the state was taken"
            )
