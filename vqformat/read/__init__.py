"""Reading a file: in order as it comes, or tensor by tensor by its index."""
