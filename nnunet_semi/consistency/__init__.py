"""What disturbed views must agree on: pseudo labels, masked losses, ramps."""
