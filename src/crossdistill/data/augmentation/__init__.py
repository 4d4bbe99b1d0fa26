"""Random changes of images: parameters from seeded draws, pixels by tensors on any device."""
