"""Networks as torch modules, and the faster ways through them."""
