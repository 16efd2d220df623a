"""What a training leaves behind: adapter files, and how a model takes them.

==================  ==========================================================
`files`             what an adapter file holds
`loading`           how a model takes it, and which bases it belongs to
`state_keys`        adapters built from the keys of a state dict
`named_adapters`    several adapters on one base
==================  ==========================================================
"""
