"""Pixels in memory and in files."""
