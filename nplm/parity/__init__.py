"""The judge: tolerances with their reasons, and the torch twin of every model."""
