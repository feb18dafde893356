"""Challenge datasets, and folders of images and masks, into nnU-Net's raw format: one file each."""
