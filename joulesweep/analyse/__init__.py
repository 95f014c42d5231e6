"""From records to tables and findings. Nothing here imports torch."""
