"""Every constant of a `.pte` against its checkpoint tensor, without running the file."""
