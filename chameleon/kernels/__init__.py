"""Work on single kernels: make them from operators, give them default schedules, and change how they use memory."""
