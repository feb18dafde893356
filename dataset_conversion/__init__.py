"""Challenge datasets into nnU-Net raw format, one file per challenge."""
