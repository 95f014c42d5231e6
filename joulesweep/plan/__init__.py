"""From a config to runs, when the Snakefile is parsed."""
