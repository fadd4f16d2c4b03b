"""Is the installation complete, and does it work?"""
