"""The figures of the papers: what is drawn is computed without matplotlib, which only draws it."""
