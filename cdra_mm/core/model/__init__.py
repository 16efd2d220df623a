"""The backbone: where its families hold their weights, which of them compete, what they hash to.

=================  ===========================================================
`families`         where each family of transformers holds its weights
`targets`          which weights compete, and their names
`exclusion`        which of them a user leaves out
`digests`          which base weights a plan or an adapter belongs to
`attention`        attention between adapted or scored projections
`evaluation`       the model as it is scored: no dropout, no updated statistics
=================  ===========================================================
"""
