"""The papers' experiments inside a real AutoTVM (TVM up to 0.19)."""
