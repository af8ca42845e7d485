"""Runs a recipe: the loop, the step, evaluation, and what surrounds them."""
