"""The ledger: one file for each paper: what it is, where it lives, its claims as executable checks."""
