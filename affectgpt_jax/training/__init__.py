"""Training: state, optimizer, the pure step, and the loop around it."""
