"""Read the machine and its meters. Nothing here imports torch."""
