"""Transforms of images and segmentation masks."""
