"""Several processes.

========================  ==================================================
`processes`               how they find each other
`exchange`                what they tell each other: sums, and failures
`strategies`              sharding, refused by name
========================  ==================================================
"""
