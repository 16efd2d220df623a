"""Eq. 3 of SPT: the mean squared per-sample gradient of every weight.

===================  =========================================================
`scores`             what a caller asks for
`batch_scores`       the squares of a whole batch in one backward
`parameter_watch`    which operation uses a weight; `watched_uses` has its scored form
`scored_ops`         the operations that square in their backward
`square_sink`        where they bring the squares
`score_sums`         what these are added up in: type and device
`squares`            how the squares are added up, by device
`square_kernel`      the Triton kernel for it
`sample_check`       whether the squares are of one sample each
`one_by_one`         slow and exact: what has no scored form
===================  =========================================================
"""
