"""Optimizers and schedules that a setting names, with arguments."""
