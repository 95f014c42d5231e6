"""Turn records into tables and findings. Nothing here imports torch."""
