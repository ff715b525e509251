"""What only indicators need."""
