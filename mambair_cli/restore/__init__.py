"""One image restored."""
