"""What gathering computes for checks, as plain data: records, and the functions that compute them."""
