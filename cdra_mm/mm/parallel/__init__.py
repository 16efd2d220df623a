"""Several processes.

========================  ==================================================
`processes`               how they find each other
`score_reduction`         what they tell each other: sums, and failures
`distributed_strategies`  sharding, refused by name
========================  ==================================================
"""
