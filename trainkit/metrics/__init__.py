"""Metrics: sums and counts."""
