"""Builders of streams, one file for each scenario. ``split-digits`` on the command line is ``split("digits")`` here."""
