"""Streaming metrics, confusion counts, calibration and bootstrap confidence intervals."""
