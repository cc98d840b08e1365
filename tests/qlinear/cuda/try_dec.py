import torch, sys, time
from tests.engine.test_fused import quantized, tokens_of, stepped, read_all, float_logits, distance, fused, CAPS, LONG, KNOWN
from engine.fused import fused_decoder
from qlinear.backends.cuda.backend import CudaBackend
from tests.qlinear.cuda.on_cpu import CpuLauncher
be = CudaBackend(CpuLauncher())
for mt, opts in [*KNOWN, ("gemma2", dict(CAPS, **LONG))]:
  for bits in (4,3):
    t=time.time()
    model, exact = quantized(mt, bits, backend=be, **opts)
    dec, why = fused_decoder(model, be, 128, 32)
    if dec is None: print(mt, opts, why); continue
    tokens = tokens_of(40)
    exp = float_logits(exact, tokens)
    ours = stepped(dec, tokens, 30)
    cpu = stepped(fused(quantized(mt, bits, **opts)[0]), tokens, 30)
    print(mt, bits, str(opts)[:50], "vs exact", distance(ours, exp[29:]), "cpu vs exact", distance(cpu, exp[29:]), "ours-cpu", distance(ours, cpu), "prefill", distance(read_all(dec, tokens), exp), round(time.time()-t,1), flush=True)
