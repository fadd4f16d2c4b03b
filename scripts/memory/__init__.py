"""How much memory do networks need, and how fast is that found?"""
