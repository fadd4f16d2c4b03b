"""One kernel at a time: from operators to kernels, default schedules, kernels that write in place, their scratch memory."""
