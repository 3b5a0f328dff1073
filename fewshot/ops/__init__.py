"""Batched building blocks shared by the methods. Axes: E episodes, S support, Q query, N ways, D features."""
