"""From a run's own data to its plan.

========================  ==================================================
`run_plan`                how a run comes by its plan
`head_fit`, `held_batch`  the head, fitted before anything is scored
`scoring`                 the run's own data and loss as batches (Eq. 3)
`sample_losses`           the training loss of each sample of a batch
`scoring_state`           the state of a run while it is scored
`competing`               what of the backbone competes
`label_check`             labels that fit the heads, and what they say about mistakes
`unlabelled`              samples without any label
`contrastive`             the loss that GPS scores by
`supernet`                the search of NOAH
`kept_scores`             what is kept of the scores for pictures
========================  ==================================================
"""
