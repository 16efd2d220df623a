"""What a training leaves behind: adapter files, and how a model takes them.

==================  ==========================================================
`files`             what an adapter file holds
`adapter_saving`    how a model is written to one
`loading`           how a model takes it, and which bases it belongs to
`state_keys`        adapters built by the plan in a state dict
`old_formats`       what earlier releases wrote
`named_adapters`    several adapters on one base
`task_files`        adapter and head of a task
`multi_task`        many tasks on one base; `mixed_batch`: all of them in one batch
==================  ==========================================================
"""
