"""Torch modules, ours and the native ones: described, built, taken apart."""
