"""Slow, obvious versions of what the package computes fast: loops, sorts and autograd only.

Nothing here imports the package: an oracle that shares code with what it checks proves nothing.
"""
