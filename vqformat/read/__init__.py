"""Reading a file: front to back from any stream, or tensor by tensor by the index of a seekable file."""
