"""Certificates: measurements of how accurate a machine's joules are."""
