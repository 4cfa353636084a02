"""From what --data names to uint8 arrays in a cache, folds, and batches on a device."""
