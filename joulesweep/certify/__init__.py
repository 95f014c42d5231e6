"""Certificates: what a machine's joules are worth, measured."""
