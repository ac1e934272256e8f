"""What the project measures, and against whom. Programs, not a library: nothing imports them."""
