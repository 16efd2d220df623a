"""The backbone: where its families hold their weights, which of them compete, what they hash to.

====================  ========================================================
`families`            where each family of transformers holds its weights
`transformer_layers`  which modules are the layers
`targets`             which weights compete, and their names
`exclusion`           which of them a user leaves out
`own_state`           its own weights and buffers, adapted or not; tensors in nested values
`sharded`             which of them this process holds a part of
`row_int8`            a frozen matrix in one byte an entry
`tensor_digest`       the bytes of one tensor as a digest
`digests`             which base weights a plan or an adapter belongs to
`old_fingerprints`    the same in plans of earlier releases
`attention`           attention between adapted or scored projections
`evaluation`          the model as it is scored: no dropout, no updated statistics
====================  ========================================================
"""
