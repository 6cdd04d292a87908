"""Benchmarks: quality on data sets, speed and memory, the seams of tiles, and the figures of the papers."""
