"""Datasets: one module per dataset or container format."""
