"""What trains a plan: adapters on the model's own weights.

==================  ==========================================================
`adapter`           what an adapter is, and which kinds there are
`low_rank`          Eq. 6: the low-rank adapter of a compact block
`compact_linear`    its forward and backward
`entries`           single trained entries
`masters`           what is trained of a base in half precision is trained in fp32
`layers`            the modules that carry adapters
`apply`             plan + model: adapters are built and put on
`adapted`           what an adapted model knows of itself: plan, adapters, base
`merging`           merge, unmerge, remove
`sharding`          the base over several processes (FSDP2), the adapters whole on each
==================  ==========================================================
"""
