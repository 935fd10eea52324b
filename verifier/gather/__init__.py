"""From a request to evidence: open it, run references and program, compute what the chosen checks need."""
