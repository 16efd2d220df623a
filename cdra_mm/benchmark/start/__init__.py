"""Where the time goes from a command to the first iteration of its training.

===========================  ====================================================
`stages`                     which functions of a run are which part of its start
`stage_clock`                the time of nested stages, each without those inside it
`traced`                     runs a script of training under that clock, in its own process
`inputs`                     the runs that are measured: config, images, weights
`compare`                    several ways to start the same run, in turn
`table`                      what was found, as text
===========================  ====================================================

The processes measured need OpenMMLab; this code does not import it.
"""
