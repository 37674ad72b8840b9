"""Keras layers, ours and the native ones: described, built, taken apart."""
