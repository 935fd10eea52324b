"""One file on several releases of the runtime: where the first bits change, by how much, and whether that is more than rounding."""
