"""Findings: one file per study."""
