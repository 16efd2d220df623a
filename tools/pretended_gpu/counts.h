/* What the pretended GPU counts; inside.py reads it under the same names, in the same order. */
#pragma once

enum { LAUNCHES, GEMMS, TO_DEVICE, FROM_DEVICE, INSIDE_DEVICE, FILLS, WAITS, GRAPH_LAUNCHES, KINDS };

extern long pretended_counts[KINDS];

/* Threads of autograd and of data loaders count, too. */
static inline void count(int what) { __atomic_fetch_add(&pretended_counts[what], 1, __ATOMIC_RELAXED); }
