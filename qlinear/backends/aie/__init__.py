"""AMD's Ryzen AI array (AI Engines, "AIE") in emulation: what it would compute, and by a stated model how fast.

`devices` says what there is, `tiling` cuts a matmul into dispatches, `packing` lays a weight out in the array's own
bytes, `execution` computes from those bytes, `counters` adds up what it would have cost. Shapes in here are the
device's: activations (M, K), weights (K, N).
"""
