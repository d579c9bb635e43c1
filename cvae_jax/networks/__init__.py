"""Flax building blocks that know nothing of tasks."""
