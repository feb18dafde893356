"""From imagesUn to preprocessed cases to a stream of patches."""
