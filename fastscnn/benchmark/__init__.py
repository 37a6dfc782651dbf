"""Ways to run the same weights on this machine, and one clock for all of them."""
