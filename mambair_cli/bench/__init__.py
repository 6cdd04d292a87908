"""Benchmarks: quality on data sets, speed, memory, seams of tiles, and the papers' figures."""
