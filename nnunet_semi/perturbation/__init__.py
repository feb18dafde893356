"""How a view is disturbed: intensity, CutMix."""
