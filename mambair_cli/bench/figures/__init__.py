"""The figures of the papers. matplotlib draws them; what they show is computed without it."""
