"""From scores to a plan: what is trained, in which block, of which rank.

==================  ==========================================================
`selection`         the global top-k, on one thread (`threads`)
`compaction`        Eq. 4: rows and columns of the compact block
`ranks`             Eq. 7: its rank
`treatment`         how a matrix is trained: a block, LoRA, single entries
`ablations`         what the paper's ablations change about a matrix
`sizes`             what each target adds to a plan, at any threshold
`budget`, `trials`  the threshold whose plan fits a budget: at once, or by trying
`making`            the steps above in their order
`plan`              the record of it all, of `records`; `plan_checks` reads them
`packed_plan`       the plan as a small tensor, its lists by `packed_indices`
==================  ==========================================================
"""
