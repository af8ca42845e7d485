"""What outputs mean: recognition and segmentation."""
