"""From findings to charts and one page."""
