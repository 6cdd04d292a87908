"""Many files restored."""
