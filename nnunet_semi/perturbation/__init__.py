"""How a view is disturbed: intensity, noise, CutMix, feature dropout."""
