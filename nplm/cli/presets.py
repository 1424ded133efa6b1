"""`nplm presets` lists the models that have a name; `nplm presets show NAME` is one in full."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, fields

from nplm.cli.arguments import parse
from nplm.errors import ConfigError
from nplm.models.config import PRESETS, DecoderConfig, preset
from nplm.train import report
from nplm.train.config import TrainConfig

ITEMSIZE = 4  # bytes of a float32, which `nplm train` takes by default


@dataclass(frozen=True)
class PresetsConfig:
    """List the presets, or show one: nplm presets show NAME."""

    words: tuple[str, ...]  # nothing for the list, or: show NAME

    def check(self) -> None:
        """Raise a ConfigError for anything else than nothing or `show NAME`."""
        if self.words and (self.words[0] != "show" or len(self.words) != 2):
            raise ConfigError(
                "expected nplm presets, or nplm presets show NAME with a name of "
                f"{', '.join(PRESETS)}, got {' '.join(self.words)}"
            )
        if self.words:
            preset(self.words[1])


def main(arguments: list[str]) -> int:
    """Print the table of all presets, or the settings of one."""
    words = parse(PresetsConfig, arguments, "nplm presets").words
    if words:
        _show(words[1], PRESETS[words[1]])
        return 0
    batch = TrainConfig().batch_size
    print(f"{'preset':<12}{'parameters':>13}{'context':>9}{'layers':>8}{'heads':>7}{'channels':>10}"
          f"{'memory':>10}")  # fmt: skip
    for name, c in PRESETS.items():
        print(f"{name:<12}{parameters(c):>13,}{c.context:>9,}{c.n_layer:>8}{c.n_head:>7}"
              f"{c.n_embd:>10,}{memory(c):>10}")  # fmt: skip
    print(
        f"memory: to train in float32 with batches of {batch}; a text's own vocabulary changes it"
    )
    print("next: nplm presets show NAME lists the settings, nplm train --preset NAME trains")
    return 0


def _show(name: str, config: DecoderConfig) -> None:
    source = inspect.getsource(DecoderConfig)
    print(f"{name}: {parameters(config):,} parameters, {memory(config)} to train")
    for field in fields(config):
        unit = re.search(rf"^    {field.name}: .*  # (.*)$", source, re.MULTILINE)
        value = repr(getattr(config, field.name))
        print(f"  {field.name:<12}{value:<10}" + (f"  {unit[1]}" if unit else ""))


def memory(config: DecoderConfig) -> str:
    """What `nplm train` needs with its default batch, for people."""
    fixed = report.parameter_bytes(parameters(config), ITEMSIZE)
    return report.amount(
        fixed + report.activation_bytes(config, TrainConfig().batch_size, ITEMSIZE)
    )


def parameters(config: DecoderConfig) -> int:
    """`Decoder(config).num_parameters()`, without its 124 million numbers (a test compares)."""
    c = config
    C, hidden = c.n_embd, c.hidden
    norm = C if c.norm == "rms" or not c.bias else 2 * C
    kv = 2 * (C // c.n_head) * c.kv_heads  # rows of the key and value projections
    into = 2 * hidden if c.activation == "swiglu" else hidden  # swiglu: gate and value
    block = 2 * norm + C * (C + kv) + C * C + C * into + hidden * C
    if c.bias:
        block += C + kv + C + into + C
    tables = c.vocab_size * C * (1 if c.tied else 2)
    tables += c.context * C if c.positions == "learned" else 0
    return tables + c.n_layer * block + norm
