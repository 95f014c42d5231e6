"""Joulesweep: energy-aware sweeps of language-model domain adaptation."""

__version__ = "0.1.0"
