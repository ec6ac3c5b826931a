"""A wing: text, as sentences that an encoder turns into features."""
