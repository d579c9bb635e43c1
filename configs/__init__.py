"""Experiments, one a file; `common` holds what they share."""
