"""Nothing of its own: the gate's plugin is an entry point, `verifier.pytest_plugin`."""
