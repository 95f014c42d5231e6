"""Launch runs: lease boards, start the ranks and write the record."""
