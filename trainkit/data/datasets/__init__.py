"""One file per dataset or container."""
