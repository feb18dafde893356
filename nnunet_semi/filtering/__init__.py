"""Which unlabeled cases to trust: scores, selection, and a person's look at them."""
