"""One file per family. A check is a function of the evidence; it returns one result per case."""
