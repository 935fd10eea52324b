"""The commands, a module each. Faces start them (`verifier/test_pte.py`), and nobody imports a face."""
