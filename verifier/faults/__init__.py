"""The fault bench: real faults, injected one at a time, and whether the gate finds them (`python -m verifier.faults`)."""
