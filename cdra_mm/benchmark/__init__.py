"""Speed and memory beside the methods' natural limits and peers, as ratios of one run.

===========================  ====================================================
`arguments`                  the command line; `command` runs it
`case`                       one setting: model, image size, batch, type, device
`timing`                     candidates in turn, and the ratios of their times
`memory`                     peak memory, and bytes kept for the backward
`block_sizes`                plans with the papers' block sizes, or of real masks
`peers`                      other libraries that compute the same scores
`adapted`                    models whose training steps are compared
`scores`, `step`,            the benchmarks
`strategies`, `inference`,
`planning_time`, `growth`
`start`                      from the command of a run to its first iteration
`report`                     tables, the machine, the JSON file
===========================  ====================================================

Needs timm; the peers are compared with where they are installed.
"""
