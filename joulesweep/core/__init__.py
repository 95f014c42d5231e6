"""What everybody may import; standard library only."""
