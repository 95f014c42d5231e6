"""The command `joulesweep`."""
