"""Memory-aware scheduling of a network's graph (SERENITY, Ahn et al., MLSys 2020): order, rewriting, arena. Knows no TVM."""
