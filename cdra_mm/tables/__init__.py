"""The papers' tables: a grid of runs, what each left behind, and the table made of it.

In the order of the work: `grid` what is compared, `jobs` the runs that takes and the choice among
them on validation data, `results` what a run left in its folder, `runner` running them side by
side, `table` means and spreads, `text_formats` how a table is written, `study` all of it in one
command.
`cost` is a table of its own: time and memory, which need no data.
"""
