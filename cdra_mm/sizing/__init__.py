"""What a backbone takes to score, plan and train, told without memory for it.

==================  ==========================================================
`block_sizes`       plans with blocks of the papers' sizes, before there is one
`synthetic_scores`  scores that look like real ones, likewise
`live_bytes`        the most bytes that operations hold at once, on any device
`estimate`          a dry run on the meta device
`block_time`        seconds of a few layers, for all of them
==================  ==========================================================
"""
