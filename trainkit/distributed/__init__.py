"""Accelerator, host and sharded parameters."""
