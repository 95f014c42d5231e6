"""Values of each axis of a sweep, one row of plain data per value."""
