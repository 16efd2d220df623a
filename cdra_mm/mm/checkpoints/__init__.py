"""What a run writes, and how it goes on from it.

========================  ==================================================
`record`                  slim checkpoints: what is stored, and what is named
`restoring`               how both come back
`base_source`             where a frozen base came from
`base_weights`            how it is brought back
`partial_base`            what is said of a base file that fills a backbone only in part
`slim_hook`               puts the record in and the named base out
`saving`                  a whole checkpoint or the one before, never half of one
`resuming`                which checkpoint a run goes on from, and which it refuses
`checked`                 every field is of its type (`checked_optimizer`: of the optimizer)
`midway`                  what else is needed within an epoch or an accumulation window
========================  ==================================================
"""
