"""The workshop: pieces that several methods are made of, one file for each idea."""
