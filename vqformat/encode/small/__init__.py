"""The preset ``small``: a trellis, entropy coding by context, and what is known of a layer's inputs."""
