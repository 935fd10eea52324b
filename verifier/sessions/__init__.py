"""What an app really did: recorded conversations, and whether their answers are those of a file to that input."""
