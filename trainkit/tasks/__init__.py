"""Tasks: losses, metrics and predictions of recognition and segmentation."""
