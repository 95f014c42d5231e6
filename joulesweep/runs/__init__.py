"""A run seen from outside: its identity, its record and its joules."""
