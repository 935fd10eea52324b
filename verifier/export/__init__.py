"""From checkpoint to `.pte`: quantize, trace, lower, serialize, and say in a manifest what was done."""
