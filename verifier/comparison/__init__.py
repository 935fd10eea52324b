"""Two reports side by side: is the candidate better, the same, or worse than what ships?"""
