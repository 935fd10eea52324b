"""What every stage stands on: limits and comparison. No heavy imports."""
