"""From scores to a plan: what is trained, in which block, of which rank.

==================  ==========================================================
`selection`         the global top-k, on one thread (`threads`)
`cases`             Eq. 1: few entries alone, many by a module or whole
`compaction`        Eq. 4: rows and columns of the compact block
`ranks`             Eq. 7: its rank
`ablations`         what the paper's ablations change about a matrix
`rules`             the settings that all of these follow
`treatment`         how a target is trained: a block, LoRA, single entries, whole
`sizes`             what each target adds to a plan, at any threshold
`budget`            the threshold whose plan fits a budget
`budget_by_plans`   the same where no histogram tells the sizes, by trying
`making`            the steps above in their order
`offers`            ours: what can be bought of a target, and its gain by the `spectra`
`by_gradient`       ours: blocks, ranks and vectors bought by the mean gradient
`plan`              the record of it all, of `records`; `plan_checks` reads them
`plan_positions`    the layers and roles that a plan keeps for its readers
`packed_plan`       the plan as a small tensor, its lists by `packed_indices`
==================  ==========================================================
"""
