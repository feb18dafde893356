"""What disturbed views must agree on: pseudo labels, thresholds, masked losses, ramps, teachers."""
