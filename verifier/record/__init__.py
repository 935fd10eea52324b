"""What is recorded of a run: its verdict, the facts that another run is compared by, the figures that a report shows."""
