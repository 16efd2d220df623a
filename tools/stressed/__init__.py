"""The parts of tools/stress.py.

`killing` starts processes and kills them at a moment, `training` does so to a run that is resumed,
`exporting` to what is made of its checkpoints, `comparing` says in what two files differ.
"""
