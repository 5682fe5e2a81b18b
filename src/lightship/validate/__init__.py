"""Checks, statistics, the gate and the report."""
