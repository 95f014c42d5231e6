"""The parent of a run: it leases boards, starts the ranks and writes the record."""
