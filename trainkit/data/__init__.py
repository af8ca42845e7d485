"""Which image comes when, how it is read and changed, and one file per dataset."""
