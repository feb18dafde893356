"""Rounds of self-training: datasets of labeled and pseudo-labeled cases, and the plan that trains on them."""
