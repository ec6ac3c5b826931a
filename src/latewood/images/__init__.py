"""A wing: classification of images."""
