"""Operators of ExecuTorch's programs: one record for each, one module for each family."""
