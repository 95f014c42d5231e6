"""The training process: torch, transformers, Zeus and nothing else."""
