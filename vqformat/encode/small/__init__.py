"""The preset ``small``: trellis-coded quantization, entropy coding by contexts, and error feedback."""
