"""Reports of runs, from what lies in their folders: no dataset, no network, no torch."""
