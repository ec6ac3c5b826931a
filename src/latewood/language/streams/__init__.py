"""Builders of streams, one file for each scenario. ``text-en,fr`` on the command line is ``text("en,fr")`` here."""
