"""What is computed in a run, as plain data, and the functions that compute it."""
