"""Label maps in the formats of nnU-Net's readers, as files and as the cases of folders."""
