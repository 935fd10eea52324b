"""`pytest --pte`: the gate as tests. `verifier.pytest_plugin` is what pytest loads."""
