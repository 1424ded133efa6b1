"""The engine: graph.py (the walk), tensor.py (arrays with gradients), op.py (recording)."""
