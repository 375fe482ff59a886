"""Measured comparisons: ``python -m benchmarks.NAME [--quick] [--json FILE]`` prints one JSON object."""
