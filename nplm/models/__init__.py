"""The decoder-only transformer and its settings."""

from nplm.models.config import PRESETS, DecoderConfig, preset
from nplm.models.decoder import Decoder

__all__ = ["PRESETS", "Decoder", "DecoderConfig", "preset"]
