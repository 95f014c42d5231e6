"""The training process, which imports torch, transformers and Zeus, and nothing of analysis and report."""
