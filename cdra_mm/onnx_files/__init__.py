"""ONNX files of plain torch models: traced without noise, and compared before they are written.

================  ==================================================================
`writing`         what the packages of the extra ``export`` are needed for
`task_graph`      one base for many tasks: what a task changes are the graph's inputs
================  ==================================================================
"""

from .task_graph import TaskGraph, export_base

__all__ = ['TaskGraph', 'export_base']
