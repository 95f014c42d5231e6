"""The values of each axis: a row of plain data per value."""
