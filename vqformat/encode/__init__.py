"""The encoder: from tensors to a file. Decoding imports nothing of it."""
