"""Metrics that two systems or more share: functions of plain arrays."""
