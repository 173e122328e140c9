"""Environments as pixels: the base class, the renderer, Gymnasium tasks, and evaluation environments side by side."""
