"""XNNPACK: its payload, its nodes and their bounds, its arithmetic."""
