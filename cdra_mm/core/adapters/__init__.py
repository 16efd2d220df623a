"""What trains a plan: adapters on the model's own weights.

==================  ==========================================================
`adapter`           what an adapter is, and which kinds there are
`low_rank`          Eq. 6: the low-rank adapter of a compact block
`compact_linear`    its forward and backward; `block_index` takes rows and columns
`copied_linear`     the same through copies of the weights (`layer_copy`)
`copied_weights`    when these are made, and which of the two is taken
`kept_copies`       those that stay from forward to forward, for small models on a CPU
`block_ops`         their operations; `block_kernels` and `gradient_kernels` have them for
                    NVIDIA's GPUs, `kernel_choice` says whether these are taken
`joint_blocks`      the blocks of one weight as one
`entries`           single trained entries
`masters`           what is trained of a base in half precision is trained in fp32
`adapter_set`       the adapters of one module
`layers`            the modules that carry adapters
`apply`             plan + model: adapters are built and put on
`adapted`           what an adapted model knows of itself: plan, adapters, base
`merging`           merge, unmerge, remove
`small_base`        the frozen matrices in int8, and back
`fitting`           adapters of a model as one piece: off it, and on it again
`stand_in`          what stands in the place of a weight while a forward runs
`mixed_weights`     the weights of a batch whose samples belong to different tasks
`sharding`          the base over several processes (FSDP2), the adapters whole on each
==================  ==========================================================
"""
