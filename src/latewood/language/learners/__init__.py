"""Methods of continual pre-training, one file each."""
