"""Turn tables and findings into charts and one page."""
