"""How good is the search, and what does it cost?"""
