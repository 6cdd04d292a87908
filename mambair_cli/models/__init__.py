"""Which models there are and how they get here."""
