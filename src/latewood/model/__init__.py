"""The practitioner's side: a versioned model directory that learns, predicts, remembers, and forgets on request."""
