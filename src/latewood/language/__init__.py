"""A wing: text, for language models and for encoders of sentences."""
