"""The machine and its meters. Nothing here imports torch."""
