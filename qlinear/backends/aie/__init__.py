"""AMD's Ryzen AI array (AI Engines, "AIE") in emulation: what it would compute, and by a stated model how fast.

`backend` is the target. `devices` says what there is, `tiling` cuts a matmul into dispatches, `packing` lays a weight
out in the array's own bytes, `execution` computes from those bytes, `counters` adds up what it would have cost by the
figures of `latency`, `npu` looks for the hardware. Shapes in here are the device's: activations (M, K), weights (K, N).
"""
