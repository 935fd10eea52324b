"""Reading a `.pte` without running it."""
