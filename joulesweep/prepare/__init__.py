"""Fetch models and texts, and tokenise: never measured."""
