"""The network: built, wrapped, looked into, frozen and counted."""
