"""Modules whose CPU kernels are fused, with the same numbers as torch's."""
