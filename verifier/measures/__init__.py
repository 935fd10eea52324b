"""What gathering computes for the checks: numbers about models, files and runs. Records that checks read lie in modules without a model."""
