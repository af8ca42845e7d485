"""Trained models, loaded and shown images that are no dataset's."""
