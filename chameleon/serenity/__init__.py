"""Memory-aware scheduling of a network's graph (SERENITY, Ahn et al., MLSys 2020).

`order` finds an order of the steps that needs little memory. `rewrite` changes the graph so that it needs less.
`arena` gives every tensor its place in one piece of memory, the arena. Nothing here knows of TVM.
"""
