"""The encoder: from tensors to a file. The decoder imports nothing from here."""
