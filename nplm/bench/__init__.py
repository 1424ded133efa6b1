"""Measuring: what `nplm bench`, `nplm train --profile` and `python -m benchmarks` share."""
